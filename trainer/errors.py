"""What is raised for a user's mistake, and ends in one line instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what, where, and what to do.

    Attributes:
      known_to_all: whether every worker raises the same, so that one of them is to print it.
    """

    known_to_all = True


class ConfigError(UserError):
    """A flag with a value that its rule forbids. The message names flag, rule and value."""
