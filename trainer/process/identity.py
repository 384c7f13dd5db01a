"""Identifies processes, even where the kernel gives a process's number to a later one."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "csh", "tcsh", "fish", "busybox", "timeout")


class Process(NamedTuple):
    """A process of this host.

    Attributes:
      pid: process number.
      start_ticks: start time, in clock ticks since the host was booted.
    """

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Returns whether the process runs or is stopped; a zombie counts as dead."""
        return find(self.pid) == self


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/<pid>/stat from the state on; empty where there is no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def find(pid: int) -> Process | None:
    """Returns the process that has this number now; None where there is none."""
    fields = _stat(pid)
    if not fields or fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]))


def this_process() -> Process:
    """Returns the calling process; its start time is 0 where there is no /proc."""
    return find(os.getpid()) or Process(os.getpid(), 0)


def end_with_parent(number: signal.Signals) -> None:
    """Asks the kernel to send this process a signal when its parent has ended, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def parent_of(pid: int) -> int:
    """Returns the number of a process's parent; 0 where it has none."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def children_of(pid: int) -> list[int]:
    """Returns the numbers of a process's children; empty where they can't be read."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):  # Of each thread those that it made.
        with contextlib.suppress(OSError):
            children += map(int, file.read_text(encoding="ascii").split())
    return children


def cpu_sec_of(pid: int) -> float:
    """Returns the CPU time of a process and of its children that have ended; 0 where it is gone."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def name_of(pid: int) -> str:
    """Returns the short name of a process's program; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def is_shell(pid: int) -> bool:
    """Returns whether a process is a shell, or a program that waits for its child as shells do."""
    return name_of(pid) in _SHELLS


def command_of(pid: int) -> list[str]:
    """Returns the command line of a process; empty where it can't be read."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.split("\0")[:-1]


def environ_of(pid: int) -> dict[str, str]:
    """Returns the environment that a process was started with; empty where it can't be read."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(item.partition("=")[::2] for item in text.split("\0") if item)


def host_identity() -> str:
    """Returns a text that two processes share where they can look each other up by number.

    The host's name would not do: two containers can have the same one, and the processes of two
    containers on one host can't see each other.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename
