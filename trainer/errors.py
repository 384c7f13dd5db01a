"""The errors that users can correct; the program prints them in one line, without a traceback."""

import errno

from trainer import exit_status

# Errors of files that the same command will meet again, unless somebody mends what they name.
_LASTING = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM}
    | {errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTSUP}
)
# A plug-in may raise these without a number.
_LASTING_KINDS = (
    *(FileNotFoundError, FileExistsError, PermissionError),
    *(IsADirectoryError, NotADirectoryError),
)


class UserError(Exception):
    """An error that the user can correct.

    Attributes:
      known_to_all: whether every worker raises the same error, so that only the first prints it.
      status: exit status of the program: one of those in `trainer.exit_status`.
    """

    def __init__(
        self, message: str, *, known_to_all: bool = True, status: int = exit_status.MISTAKE
    ) -> None:
        """Creates the error.

        Args:
          message: one line that says what is wrong, where, and what to do.
          known_to_all, status: see the attributes.
        """
        super().__init__(message)
        self.known_to_all = known_to_all
        self.status = status


def status_of(error: OSError) -> int:
    """Returns the status of a UserError that an error of a file causes.

    A full disk, or a broken connection, may be mended when the same command runs again.
    """
    is_lasting = error.errno in _LASTING or isinstance(error, _LASTING_KINDS)
    return exit_status.MISTAKE if is_lasting else exit_status.FAILED


class ConfigError(UserError):
    """The error of a flag whose value its rule forbids; the message names flag, rule and value."""
