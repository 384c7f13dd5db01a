"""Ends a process from any of its threads, whatever its main thread is doing."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from trainer.process import streams
from trainer.safety.status import Status

_LAST_WORDS_SEC = 3.0


class SuddenExit:
    """Prints a reason, writes it into status.json, and ends the process at once.

    It does not wait for the main thread, which may be in a call that never returns.
    """

    def __init__(self, status: Status, *, rank: int, size: int) -> None:
        self._status = status
        self._rank = rank
        self._size = size

    def __call__(self, exit_status: int, reason: str) -> NoReturn:
        """Ends the process.

        Args:
          exit_status: one of those in `trainer.exit_status`.
          reason: why, in one line.
        """
        within(_LAST_WORDS_SEC, lambda: self._tell(exit_status, reason))
        os._exit(exit_status)

    def _tell(self, exit_status: int, reason: str) -> None:
        self.say(f"{reason}; it ends with status {exit_status}")
        self._status.set("failed", reason=f"worker {self._rank}: {reason}")
        streams.drain()

    def say(self, text: str) -> None:
        """Prints a line, unless the standard error is closed."""
        with contextlib.suppress(OSError):
            worker = f"worker {self._rank} of {self._size}"
            print(f"slim-horovod: {worker}: {text}", file=sys.stderr, flush=True)


def within(limit_sec: float, function: Callable[[], object]) -> None:
    """Calls a function, and waits for it no longer than a limit: a disk may never answer."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(limit_sec)
