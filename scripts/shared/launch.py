"""Runs a launcher's command, and passes signals on to what it runs: for supervise.py."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import worker_environment

from trainer.process import identity
from trainer.process.keeper import STOP_SIGNALS, unless_nohup
from trainer.safety import lock_holder


class Launch:
    """Runs the command, once or more, and passes signals on to it."""

    def __init__(self, command: Sequence[str], logdir: Path) -> None:
        self._command = command
        self._logdir = logdir
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: signal.Signals | None = None
        for number in unless_nohup(STOP_SIGNALS):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        """Asks rank 0 to stop, which tells the others; else, and the second time, the launcher.

        horovodrun ends its workers 5 s after a signal, saved or not; rank 0 takes its time.
        """
        del frame
        is_first = self._asked is None
        self._asked = signal.Signals(number)
        if self._process is None or (is_first and self._ask_rank_0()):
            return
        is_known = number in (signal.SIGTERM, signal.SIGINT)  # To launchers, too.
        self._process.send_signal(number if is_known else signal.SIGTERM)

    def _ask_rank_0(self) -> bool:
        try:
            holder = lock_holder.find_alive(self._logdir)
            if holder is not None:
                os.kill(holder.process.pid, signal.SIGUSR1)
        except OSError:
            return False
        return holder is not None

    def asked(self) -> signal.Signals | None:
        """The signal that this program got last; None: none up to now."""
        return self._asked

    def run(self) -> int:
        """Runs the command; returns its exit status, as a shell tells it."""
        self._process = subprocess.Popen(
            self._command,
            env=worker_environment.select(os.environ),
            preexec_fn=_prepare_launcher,  # noqa: PLW1509 (it takes no lock that another thread has)
        )
        if self._asked is not None:  # While it was started.
            self._process.send_signal(signal.SIGTERM)
        returncode = self._process.wait()
        self._process = None
        return returncode if returncode >= 0 else 128 - returncode

    def wait(self, pause_sec: float) -> None:
        """Lets time pass, until a signal comes."""
        end_sec = time.monotonic() + pause_sec
        while self._asked is None and time.monotonic() < end_sec:
            time.sleep(0.1)


def _prepare_launcher() -> None:
    os.setsid()  # So that the terminal's Ctrl-C comes once, from this program.
    identity.end_with_parent(signal.SIGTERM)
