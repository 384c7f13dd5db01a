"""Finds out how much main memory is free, and limits what this process may take of it.

Nothing here needs TensorFlow.
"""

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Share of the free memory that this process may use: not all, since other programs grow too.
_USABLE_SHARE = 0.95
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def read_kilobytes(path: str, name: str) -> int:
    """Returns a value of a file such as /proc/meminfo, bytes."""
    text = Path(path).read_text(encoding="ascii")
    return 1024 * int(re.findall(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)[0])


def available_bytes() -> int:
    """Returns how many bytes of main memory are free, within the limits of this process's groups.

    A container has such a limit, and a unit of systemd may have one; a group's counts for those
    within it, too.
    """
    left = [_left_in(folder, names) for folder, names in _find_groups()]
    available = read_kilobytes("/proc/meminfo", "MemAvailable")
    return min([available, *(bytes_left for bytes_left in left if bytes_left is not None)])


class _Names(NamedTuple):
    """The names that a version of cgroups has for a limit, for what is used, and for cached files.

    Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """

    limit: str
    used: str
    cached: str


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")


def _find_groups() -> Iterator[tuple[Path, _Names]]:
    """Yields the folder of each memory group that this process is in, and its version's names.

    In a container the kernel may tell a path that is not there: its own group is the root.
    """
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (_CGROUP / "memory", _VERSION_1) if controllers else (_CGROUP, _VERSION_2)
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield folder, names


def _left_in(folder: Path, names: _Names) -> int | None:
    """Returns how many bytes a group may still take; None where it has no limit."""
    try:
        limit = int((folder / names.limit).read_text(encoding="ascii"))
        used = int((folder / names.used).read_text(encoding="ascii"))
        statistics = (folder / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # No such group, or a limit of "max".
        return None
    # Cached files count as used memory, but give way to programs.
    cached = re.search(rf"^{names.cached} (\d+)$", statistics, re.MULTILINE)
    return max(0, limit - used + (int(cached[1]) if cached else 0))


def usable_bytes() -> int:
    """Returns how many bytes of main memory a process that is started now may take at most."""
    soft = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    bounds = [bound for bound in soft if bound != resource.RLIM_INFINITY]
    return int(_USABLE_SHARE * min([available_bytes(), *bounds]))


@contextlib.contextmanager
def limited_for_others() -> Iterator[None]:
    """Limits processes that are started inside to a share of all that limits this process.

    These are the memory that is free, and the limits of data and of addresses (`ulimit -d`, `-v`).
    The share is left to what such a process has less of than what it stands for. A library that
    crashes where memory is refused leaves no core file.
    """
    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_CORE)
    before = {each: resource.getrlimit(each) for each in kinds}
    free = int(_USABLE_SHARE * available_bytes())
    try:
        for each, (soft, hard) in before.items():
            bounds = {resource.RLIMIT_DATA: [free], resource.RLIMIT_CORE: [0]}.get(each, [])
            if soft != resource.RLIM_INFINITY:
                bounds.append(int(_USABLE_SHARE * soft))
            if bounds:
                resource.setrlimit(each, (min(bounds), hard))
        yield
    finally:
        for each, limits in before.items():
            resource.setrlimit(each, limits)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Makes allocations inside fail where main memory has no room for them.

    Processes that are started inside have the limit from the start.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    has = read_kilobytes("/proc/self/status", "VmData")
    wanted = has + int(_USABLE_SHARE * available_bytes())
    limit = min([wanted, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
