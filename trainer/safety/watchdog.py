"""Ends a worker that makes no progress, and prints where its threads are."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from trainer import exit_status
from trainer.config.run import LONG_PHASE, LONGEST_STEPS
from trainer.process import streams
from trainer.safety.sudden_exit import SuddenExit, within

# Lets all workers that hang print their stacks before the launcher notices the end of one.
_LAST_WORDS_SEC = 3.0


class Watchdog(Protocol):
    """Ends a worker that makes no progress."""

    def finish_step(self, step: int) -> None:
        """Ends a step, for the watchdog: the limit of the next one begins."""

    def begin_graph(self) -> None:
        """Allows the next step more time: it is the first one of a graph."""

    def progress(self) -> None:
        """Begins the limit of the phase anew: a part of it is done."""

    def long_phase(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Allows more time for what is done inside; afterwards the limit of a step begins anew."""

    def close(self) -> None:
        """Ends the watch."""


class NullWatchdog:
    """The watchdog of --watchdog_seconds=0, which ends nothing."""

    def finish_step(self, step: int) -> None:
        del step

    def begin_graph(self) -> None:
        pass

    def progress(self) -> None:
        pass

    def long_phase(self, what: str) -> contextlib.AbstractContextManager[None]:
        del what
        return contextlib.nullcontext()

    def close(self) -> None:
        pass


class WatchdogThread:
    """A thread that ends the process when no step has ended for too long.

    Time in which the whole process was suspended, by a scheduler for instance, does not count: the
    thread adds up the time between its own checks, as far as they come on time.
    """

    def __init__(self, limit_sec: float, exit_now: SuddenExit) -> None:
        """Starts the thread.

        Args:
          limit_sec: least time that a step is allowed.
          exit_now: ends the process.
        """
        self._limit_sec = limit_sec
        self._exit_now = exit_now
        self._poll_sec = min(1.0, limit_sec / 10)
        self._last = "nothing yet"
        self._doing = "start-up"
        self._factor = LONG_PHASE
        self._began_sec = time.monotonic()
        self._longest_step_sec = 0.0
        self._idle_sec = 0.0
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def finish_step(self, step: int) -> None:
        now_sec = time.monotonic()
        if self._factor == 1:
            self._longest_step_sec = max(self._longest_step_sec, now_sec - self._began_sec)
        self._begin(f"step {step + 1}", 1, now_sec)
        self._last = f"step {step}"

    def begin_graph(self) -> None:
        self._begin("the first step of a graph", LONG_PHASE, time.monotonic())

    def progress(self) -> None:
        self._begin(self._doing, self._factor, time.monotonic())

    @contextlib.contextmanager
    def long_phase(self, what: str) -> Iterator[None]:
        doing, factor = self._doing, self._factor
        self._begin(what, LONG_PHASE, time.monotonic())
        try:
            yield
        finally:
            self._begin(doing, factor, time.monotonic())

    def close(self) -> None:
        self._closed.set()

    def _begin(self, what: str, factor: int, now_sec: float) -> None:
        self._doing = what
        self._factor = factor
        self._began_sec = now_sec
        self._idle_sec = 0.0

    def _allowed_sec(self) -> float:
        return self._factor * max(self._limit_sec, LONGEST_STEPS * self._longest_step_sec)

    def _run(self) -> None:
        before_sec = time.monotonic()
        while not self._closed.is_set():
            time.sleep(self._poll_sec)
            now_sec = time.monotonic()
            self._idle_sec += min(now_sec - before_sec, 2 * self._poll_sec)
            before_sec = now_sec
            if self._idle_sec > self._allowed_sec() and not self._closed.is_set():
                self._end_process()

    def _end_process(self) -> None:
        reason = (
            f"no progress for {self._idle_sec:.0f} s (--watchdog_seconds) in {self._doing}, "
            f"after {self._last}"
        )
        within(_LAST_WORDS_SEC, lambda: self._show_stacks(reason))
        time.sleep(_LAST_WORDS_SEC)
        self._exit_now(exit_status.HUNG, reason)

    def _show_stacks(self, reason: str) -> None:
        self._exit_now.say(f"{reason}; its stacks:")
        streams.drain()  # What comes next is written into the file itself.
        with contextlib.suppress(OSError):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            sys.stderr.flush()


def create_watchdog(limit_sec: float, exit_now: SuddenExit) -> Watchdog:
    """Creates the watchdog for a value of --watchdog_seconds."""
    return WatchdogThread(limit_sec, exit_now) if limit_sec else NullWatchdog()
