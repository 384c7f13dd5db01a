"""The processes below a process, on this host."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from trainer.process import identity, launcher

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SEC = 0.05


def below(pid: int) -> list[int]:
    """The children of a process, their children, and so on; those that have ended are left out."""
    parents = {
        int(path.name): identity.parent_of(int(path.name))
        for path in Path("/proc").iterdir()
        if path.name.isdigit()
    }
    return [
        child
        for child in parents
        if child != pid and _is_below(child, pid, parents) and identity.find(child)
    ]


def _is_below(child: int, pid: int, parents: dict[int, int]) -> bool:
    while child not in (0, pid):
        child = parents.get(child, 0)
    return child == pid


def children_of(pid: int) -> list[int]:
    """The processes that a process has started itself, and that have not ended."""
    return [child for child in below(pid) if identity.parent_of(child) == pid]


def workers_below(pid: int) -> dict[int, int]:
    """The training workers below a process: their numbers by rank.

    A worker's shell has the worker's command line, but not its environment; what it starts itself
    has another name.
    """
    found = {}
    for child in below(pid):
        launched = launcher.find(identity.environ_of(child))
        if launched is not None and identity.name_of(child).startswith("python"):
            found[launched.rank] = child
    return found


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Sends a signal to those of these processes that have not ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_below(pid: int) -> None:
    """Kills all that is below a process, stopped or not, and returns when it is gone."""
    while left := below(pid):
        send(signal.SIGKILL, left)
        time.sleep(_LOOK_SEC)


def adopt_orphans() -> None:
    """Keeps what is below this process below it from now on, when a process between them ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
