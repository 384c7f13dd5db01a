"""Keeps what TensorFlow's libraries print while they are loaded from a worker's first lines."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

_NOTES = "^(I0000 |WARNING: All log messages)"


@contextlib.contextmanager
def without_start_up_notes() -> Iterator[None]:
    """Filters out what TensorFlow's libraries print while they are loaded, whatever the log level.

    Each worker would print it before its own first line. All else that is written to the standard
    error meanwhile comes through, even from a library that ends the process.
    """
    errors = os.dup(2)
    command = ["grep", "--invert-match", "--extended-regexp", _NOTES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors) as filtering:
        os.dup2(filtering.stdin.fileno(), 2)  # type: ignore[union-attr]  # It is a pipe.
        try:
            yield
        finally:
            os.dup2(errors, 2)
            os.close(errors)
