"""Names of files and classes as texts: they may be no UTF-8, and have line breaks in them."""

import contextlib
import io
import sys


def printable(name: str) -> str:
    """Returns a name in one line of valid text: what does not belong there is escaped."""
    valid = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in valid)


def print_anything() -> None:
    """Has the standard streams escape what they cannot encode, whatever they were told."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
