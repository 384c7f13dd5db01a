"""Does one task at a time in a thread of low priority, which leaves most of the time to others."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

# Added to this process's own: a thread of so low a priority runs where the others leave cores idle.
_NICENESS = 10
_MOST_NICENESS = 19
# What a thread takes of a core where steps have all of them: priorities alone do not help there.
STEPS_HAVE_CORES_SHARE = 0.1

_this_thread = threading.local()


class Pace:
    """Holds the calling thread to a share of a core, by pauses between pieces of its work."""

    def __init__(self, share: float, hurry: threading.Event) -> None:
        """Begins to count the thread's CPU time.

        Args:
          share: CPU time by time, above 0; 1: no pauses.
          hurry: ends the pause that is under way, and all others, when it is set.
        """
        self._pauses_by_used = 1 / share - 1
        self._hurry = hurry
        self._used_sec = time.thread_time()

    def rest(self) -> None:
        """Pauses for as long as what was done since the last pause calls for."""
        used_sec = time.thread_time()
        self._hurry.wait(self._pauses_by_used * (used_sec - self._used_sec))
        self._used_sec = used_sec


def rest() -> None:
    """Pauses the thread of a background save as its pace asks for; does nothing in any other."""
    pace: Pace | None = getattr(_this_thread, "pace", None)
    if pace is not None:
        pace.rest()


class Done(NamedTuple):
    """A task that has ended.

    Attributes:
      step: the step whose checkpoint it was to save.
      duration_sec: its duration.
      error: the exception that it raised; None: it raised nothing.
    """

    step: int
    duration_sec: float
    error: BaseException | None


class BackgroundSave:
    """Saves a checkpoint in a thread, while the loop goes on. Called by one thread alone."""

    def __init__(self, share: float = 1.0) -> None:
        """Does nothing yet.

        Args:
          share: what a save may take of a core, as long as nobody waits for it: see `Pace`.
        """
        self._share = share
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._step = 0
        self._done: list[Done] = []

    @property
    def pauses(self) -> bool:
        """Returns whether saves make pauses for the steps."""
        return self._share < 1

    def stop_pauses(self) -> None:
        """Makes later saves run without pauses."""
        self._share = 1.0

    def begin(self, step: int, save: Callable[[], object]) -> None:
        """Begins to save. None may be under way, or be done without having been taken.

        Args:
          step: the step of the checkpoint.
          save: function that saves it.
        """
        if self._thread is not None:
            raise RuntimeError(f"step {step}: the save of step {self._step} is not over")
        self._step = step
        self._hurry.clear()
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
          wait: whether to wait for one that is under way; it makes no more pauses then.
        """
        if self._thread is None or not (wait or self._done):
            return None
        self._hurry.set()
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
        _this_thread.pace = Pace(self._share, self._hurry)
        try:
            save()
        except BaseException as raised:  # noqa: BLE001 (the thread that takes it raises it)
            error = raised
        self._done.append(Done(step, time.monotonic() - began_sec, error))
