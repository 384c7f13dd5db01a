"""Does one task at a time in a thread of low priority."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

# Added to this process's own: a thread of so low a priority runs where the others leave cores idle.
_NICENESS = 10
_MOST_NICENESS = 19


class Done(NamedTuple):
    """A task that has ended.

    Attributes:
      step: the step whose checkpoint it was to save.
      duration_sec: its duration.
      error: what it raised; None: nothing.
    """

    step: int
    duration_sec: float
    error: BaseException | None


class BackgroundSave:
    """Saves a checkpoint in a thread, while the loop goes on. Called by one thread alone."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._step = 0
        self._done: list[Done] = []

    def begin(self, step: int, save: Callable[[], object]) -> None:
        """Begins to save. None may be under way, or be done without having been taken.

        Args:
          step: the step of the checkpoint.
          save: function that saves it.
        """
        if self._thread is not None:
            raise RuntimeError(f"step {step}: the save of step {self._step} is not over")
        self._step = step
        self._thread = threading.Thread(
            target=self._run, args=(step, save), name="save", daemon=True
        )
        self._thread.start()

    @property
    def step(self) -> int | None:
        """The step whose checkpoint is being saved; None: nothing is under way."""
        return self._step if self._thread is not None and not self._done else None

    def take(self, *, wait: bool) -> Done | None:
        """Returns the task that has ended, once; None where there is none.

        Args:
          wait: whether to wait for one that is under way.
        """
        if self._thread is None or not (wait or self._done):
            return None
        self._thread.join()
        self._thread = None
        return self._done.pop()

    def _run(self, step: int, save: Callable[[], object]) -> None:
        began_sec = time.monotonic()
        error: BaseException | None = None
        with contextlib.suppress(OSError):  # A kernel that has processes of one priority alone.
            thread = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MOST_NICENESS))
        try:
            save()
        except BaseException as raised:  # noqa: BLE001 (the thread that takes it raises it)
            error = raised
        self._done.append(Done(step, time.monotonic() - began_sec, error))
