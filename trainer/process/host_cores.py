"""The cores of this host that this process may use, without TensorFlow."""

import math
import os
from collections.abc import Sequence
from pathlib import Path


def quota_cores() -> int:
    """Returns the CPU quota of this container, cores, rounded up; all cores where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(float(quota) / float(period))
    except (OSError, ValueError):  # No such controller, or a quota of "max".
        return os.cpu_count() or 1


def available_cores() -> int:
    """Returns how many cores this process may use: its affinity, within its container's quota."""
    return min(len(os.sched_getaffinity(0)), quota_cores())


def in_order() -> list[int]:
    """Returns the numbers of the cores of this process's affinity, neighbours after each other.

    These are the cores of a socket, and among them the threads of a core.
    """
    return sorted(os.sched_getaffinity(0), key=_locate_core)


def share(cores: Sequence[int], worker: int, workers: int) -> Sequence[int]:
    """Returns the cores of one of the workers that share some cores evenly, by its number."""
    begin, end = (len(cores) * number // workers for number in (worker, worker + 1))
    return cores[begin:end]


def _locate_core(core: int) -> tuple[int, ...]:
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        place = [int((folder / name).read_text()) for name in ("physical_package_id", "core_id")]
    except (OSError, ValueError):  # Not every machine has these files.
        place = []
    return (*place, core)
