"""Contexts in which TensorFlow is loaded, which takes most of the time until the first line.

Nothing here imports TensorFlow.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_NOTES = "^(I0000 |WARNING: All log messages)"
# What TensorFlow loads so that Keras may register itself; it does without where that fails.
_KERAS = "keras.src.optimizers"


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
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


@contextlib.contextmanager
def without_keras() -> Iterator[None]:
    """Has TensorFlow loaded without Keras, which `tf.keras` then loads when it is used.

    Keras loads scikit-learn, scipy and matplotlib where they are installed. Nothing here uses Keras
    or them, and all together take nearly as long as TensorFlow itself.
    """
    if _KERAS in sys.modules:
        yield
        return
    sys.modules[_KERAS] = None  # type: ignore[assignment]  # So that its import fails.
    try:
        yield
    finally:
        del sys.modules[_KERAS]
