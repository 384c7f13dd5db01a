"""Ends this program without taking its libraries apart."""

import atexit
import ctypes
import os
import sys
from typing import NoReturn

from trainer.process import streams


class QuickExit:
    """The end of a program for which Python does not take TensorFlow apart, 1 to 2 s of work.

    Where a launcher ends the job, that would be a good part of the 5 s that a worker has to save.
    """

    def __init__(self) -> None:
        """Makes the end quick. What is registered with atexit from now on still runs before it."""
        self._status: int | None = None
        atexit.register(self._end)

    def exit(self, status: int) -> NoReturn:
        """Ends the program with a status, as `sys.exit` does, but for what Python does at last."""
        self._status = status
        sys.exit(status)

    def _end(self) -> None:
        streams.drain()
        if self._status is None:
            return  # An exception that nobody caught: Python prints it.
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # As where it was closed by `>&-`.
                    stream.flush()
        except OSError:
            return  # Python reports what could not be written.
        ctypes.CDLL(None).fflush(None)  # What libraries have printed.
        os._exit(self._status)
