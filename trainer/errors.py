"""The errors that users can correct; the program prints them in one line, without a traceback."""


class UserError(Exception):
    """A mistake that the user can correct.

    Attributes:
      known_to_all: whether every worker raises the same error, so that only the first prints it.
    """

    def __init__(self, message: str, *, known_to_all: bool = True) -> None:
        """Creates the error.

        Args:
          message: one line: what, where, and what to do.
          known_to_all: see the attribute.
        """
        super().__init__(message)
        self.known_to_all = known_to_all


class ConfigError(UserError):
    """A flag with a value that its rule forbids. The message names flag, rule and value."""
