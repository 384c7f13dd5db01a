"""Requests to stop: by signals, or by another thread of this process."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator

from trainer import exit_status
from trainer.process.keeper import STOP_SIGNALS, unless_nohup
from trainer.safety.sudden_exit import SuddenExit

# A launcher may signal a process and its group: signals within this time are one request.
_ONE_REQUEST_SEC = 0.5


class StopRequest:
    """A request to stop this worker. The loop shares it with all workers in their next step.

    Python runs a signal's handler between two instructions of the main thread, which may be in a
    step for seconds. Therefore a thread reads the byte that the interpreter writes at once for each
    signal (`signal.set_wakeup_fd`).

    Attributes:
      reason: who asked and how; None: there is no request.
    """

    def __init__(self, exit_now: SuddenExit) -> None:
        """Creates a request that is not made yet.

        Args:
          exit_now: ends the process at a second SIGINT.
        """
        self.reason: str | None = None
        self._exit_now = exit_now
        self._interrupted_sec: float | None = None

    def make(self, reason: str) -> None:
        """Asks this worker to stop; the first reason is kept."""
        if self.reason is None:
            self.reason = reason
            self._exit_now.say(f"{reason}: the run stops after this step, and saves")

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Handles the signals of a process inside; afterwards the process is to exit."""
        ours, interpreters = socket.socketpair()
        interpreters.setblocking(False)
        interrupt = signal.getsignal(signal.SIGINT)
        for number in unless_nohup(STOP_SIGNALS):
            signal.signal(number, _do_nothing)
        descriptor = signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(ours,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            # The others are ignored from here on: launchers repeat SIGTERM, and a worker may get it
            # after all have stopped for another's. It must not change the exit status of one that
            # has saved; a handler would not do, since the interpreter drops it when it exits.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGINT, interrupt)
            interpreters.close()
            thread.join()
            ours.close()

    def _read(self, signals: socket.socket) -> None:
        while received := signals.recv(16):
            for number in received:
                if number in STOP_SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        now_sec = time.monotonic()
        if number == signal.SIGINT:
            first_sec = self._interrupted_sec
            if first_sec is not None and now_sec - first_sec > _ONE_REQUEST_SEC:
                self._exit_now(exit_status.INTERRUPTED, "interrupted twice")
            self._interrupted_sec = first_sec or now_sec
        self.make(f"asked to stop by {number.name}")


def _do_nothing(number: int, frame: object) -> None:
    """Does nothing: without a handler the interpreter would not write its byte."""
    del number, frame
