"""Tells processes apart, even when the kernel gives a process's number to a later one."""

import os
from pathlib import Path
from typing import NamedTuple

_SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "csh", "tcsh", "fish", "busybox", "timeout")


class Process(NamedTuple):
    """One process of this host.

    Attributes:
      pid: its number.
      start_ticks: when it started, clock ticks since the host was booted.
    """

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Whether it still runs (or is stopped); one that ended and waits for its parent is not."""
        return find(self.pid) == self


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat that follow the name, from the state on; empty: no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def find(pid: int) -> Process | None:
    """The process that has this number now; None where there is none."""
    fields = _stat(pid)
    if not fields or fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]))


def this_process() -> Process:
    """The process that asks; without a start time where there is no /proc."""
    return find(os.getpid()) or Process(os.getpid(), 0)


def parent_of(pid: int) -> int:
    """The number of a process's parent; 0 where it has none."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def name_of(pid: int) -> str:
    """The short name of a process's program; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def is_shell(pid: int) -> bool:
    """Whether a process is a shell, or a program that stays and waits as shells do."""
    return name_of(pid) in _SHELLS


def environ_of(pid: int) -> dict[str, str]:
    """What a process of this user was started with; empty where it can't be read."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(item.partition("=")[::2] for item in text.split("\0") if item)


def host_identity() -> str:
    """The same for two processes that can look each other up by number, and for no others.

    Two containers can have one host name, and one host can have two containers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename
