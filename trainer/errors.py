"""The errors that users can correct; the program prints them in one line, without a traceback."""

from trainer import exit_status


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


class ConfigError(UserError):
    """The error of a flag whose value its rule forbids; the message names flag, rule and value."""
