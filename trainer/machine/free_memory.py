"""Finds out how much main memory is free, and limits what this process may take of it.

Nothing here needs TensorFlow.
"""

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

# Share of the free memory that this process may use: not all, since other programs grow too.
_USABLE_SHARE = 0.95
_CGROUP = Path("/sys/fs/cgroup")


def read_kilobytes(path: str, name: str) -> int:
    """Returns a value of a file such as /proc/meminfo, bytes."""
    text = Path(path).read_text(encoding="ascii")
    return 1024 * int(re.findall(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)[0])


def available_bytes() -> int:
    """Returns how many bytes of main memory are free, within this container's limit."""
    available = read_kilobytes("/proc/meminfo", "MemAvailable")
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = (_CGROUP / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # No such controller, or a limit of "max".
        return available
    # Cached files count as used memory, but give way to programs.
    cached = int(re.findall(r"^inactive_file (\d+)$", statistics, re.MULTILINE)[0])
    return min(available, limit - used + cached)


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
