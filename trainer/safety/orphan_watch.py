"""Ends a worker whose launcher has ended.

The kernel's own notice, PR_SET_PDEATHSIG, is about the direct parent alone. That of a worker is
usually a shell, at the end of an ssh connection or below a process of the launcher, and outlives
both.
"""

import os
import threading

from trainer import exit_status
from trainer.process import identity, launcher
from trainer.process.identity import Process
from trainer.safety.preemption import StopRequest
from trainer.safety.sudden_exit import SuddenExit

_POLL_SEC = 1.0
# As long as horovodrun itself would wait; no one else is left to end the process.
_GRACE_SEC = 8.0


def launcher_of(pid: int) -> tuple[Process, ...]:
    """Returns a worker's ancestors up to the process of its launcher, nearest first.

    Between the two are shells, and programs that got the worker's rank and started the worker.
    """
    found = []
    ancestor = identity.parent_of(pid)
    while ancestor > 1:
        process = identity.find(ancestor)
        if process is None:
            break
        found.append(process)
        has_rank = launcher.find(identity.environ_of(ancestor)) is not None
        if not has_rank and not identity.is_shell(ancestor):
            break
        ancestor = identity.parent_of(ancestor)
    return tuple(found)


class OrphanWatch:
    """A thread that checks once a second that the launcher is alive."""

    def __init__(self, stop: StopRequest, exit_now: SuddenExit) -> None:
        """Starts the thread.

        Args:
          stop: the request that is made when the launcher has ended, so that the run is saved.
          exit_now: ends the process where the run could not be saved in time.
        """
        self._stop = stop
        self._exit_now = exit_now
        self._ancestors = launcher_of(os.getpid())
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="orphan-watch", daemon=True).start()

    def close(self) -> None:
        """Stops the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_POLL_SEC):
            if all(process.is_alive() for process in self._ancestors):
                continue
            self._stop.make("left by its launcher")
            if not self._closed.wait(_GRACE_SEC):
                self._exit_now(
                    exit_status.ORPHANED, "its launcher has ended, and it could not save"
                )
            return
