"""Ends a worker whose launcher has ended.

The kernel's own notice, PR_SET_PDEATHSIG, is of the direct parent alone. A worker's is a shell as
a rule, at the end of an ssh connection or below a process of the launcher's, and outlives both.
"""

import os
import threading

from trainer.process import identity, launcher
from trainer.process.identity import Process
from trainer.safety import exit_status
from trainer.safety.preemption import StopRequest
from trainer.safety.sudden_exit import SuddenExit

_POLL_SEC = 1.0
# horovodrun's own grace; then there is nobody left who would end the process.
_GRACE_SEC = 8.0


def launcher_of(pid: int) -> tuple[Process, ...]:
    """The process that started a worker for its launcher, and what is between, nearest first.

    Between are shells, and programs that were given the worker's rank and started the worker.
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
    """A thread that looks once a second whether the launcher is still there."""

    def __init__(self, stop: StopRequest, exit_now: SuddenExit) -> None:
        """Starts to look.

        Args:
          stop: is made when the launcher has ended, so that the run is saved, if it can be.
          exit_now: for when it could not.
        """
        self._stop = stop
        self._exit_now = exit_now
        self._ancestors = launcher_of(os.getpid())
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="orphan-watch", daemon=True).start()

    def close(self) -> None:
        """Stops looking."""
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
