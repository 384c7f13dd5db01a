"""Requests to stop: by signals, or by another thread of this process."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator

from trainer.safety import exit_status
from trainer.safety.sudden_exit import SuddenExit

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A launcher may signal a process and its group: what comes together is one request.
_ONE_REQUEST_SEC = 0.5


class StopRequest:
    """Whether this worker was asked to stop. The loop tells all workers, at their next step.

    Python runs a signal's handler between two instructions of the main thread, which may be in a
    step for seconds. What counts here is therefore the byte that the interpreter writes at once,
    and a thread that reads it.

    Attributes:
      reason: who asked; None: nobody.
    """

    def __init__(self, exit_now: SuddenExit) -> None:
        """Creates a request that nobody has made.

        Args:
          exit_now: what a second SIGINT gets.
        """
        self.reason: str | None = None
        self._exit_now = exit_now
        self._interrupted_sec: float | None = None

    def make(self, reason: str) -> None:
        """Asks this worker to stop; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._exit_now.say(f"{reason}: the run stops after this step, and saves")

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Takes the signals of a main thread inside; after it, the process is to end."""
        ours, interpreters = socket.socketpair()
        interpreters.setblocking(False)
        interrupt = signal.getsignal(signal.SIGINT)
        for number in SIGNALS:
            signal.signal(number, _do_nothing)
        descriptor = signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(ours,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            # The others are over: launchers repeat SIGTERM, and one worker's can come when all have
            # stopped for another's. It must not end a worker that has saved and is leaving, with
            # another status than the one that says so; the interpreter's own end drops handlers.
            signal.signal(signal.SIGINT, interrupt)
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            interpreters.close()
            thread.join()
            ours.close()

    def _read(self, signals: socket.socket) -> None:
        while received := signals.recv(16):
            for number in received:
                if number in SIGNALS:
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
    """A handler must be there for the interpreter to write its byte."""
    del number, frame
