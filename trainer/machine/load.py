"""The share of the cores that other processes take meanwhile; nothing here needs TensorFlow."""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from trainer.process import identity

_TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
# The kernel counts in ticks, of 10 ms as a rule: of a shorter time they tell nothing.
_LEAST_SEC = 1.0
# Above it a machine is busy: the threads of an operation wait for the slowest one.
_BUSY_SHARE = 0.1


class Times(NamedTuple):
    """The readings of the clocks at a moment, seconds.

    Attributes:
      now: wall time.
      of_cores: CPU time that the cores of this process have given to anybody, to other virtual
        machines too; None where it can't be told.
      own: CPU time of this process and of all that it has started.
      of_container: CPU time of all processes of this container; None where it can't be told.
    """

    now: float
    of_cores: float | None
    own: float
    of_container: float | None


def _read_cores() -> float | None:
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/stat").read_text(encoding="ascii")
    found = {
        int(number): [int(ticks) for ticks in rest.split()]
        for number, rest in re.findall(r"^cpu(\d+) (.*)$", text, re.MULTILINE)
    }
    cores = os.sched_getaffinity(0)
    if not cores <= found.keys():
        return None
    # user nice system idle iowait irq softirq steal, the last of other virtual machines: proc(5).
    ticks = sum(sum(found[core][:3]) + sum(found[core][5:8]) for core in cores)
    return ticks / _TICKS_PER_SEC


def _read_own() -> float:
    pids = [os.getpid()]
    for pid in pids:  # It grows.
        pids += identity.children_of(pid)
    return sum(identity.cpu_sec_of(pid) for pid in pids)


def _read_container() -> float | None:
    try:
        text = Path("/sys/fs/cgroup/cpu.stat").read_text(encoding="ascii")
        return int(re.findall(r"^usage_usec (\d+)$", text, re.MULTILINE)[0]) / 1e6
    except (OSError, IndexError):  # No such controller, or an older one.
        return None


def _read() -> Times:
    return Times(time.monotonic(), _read_cores(), _read_own(), _read_container())


def others_share(before: Times, after: Times, *, cores: int, usable_cores: int) -> float | None:
    """Returns the share, 0 to 1, of this process's cores that others took between two moments.

    Args:
      before: times at the first moment.
      after: times at the second.
      cores: number of cores that this process may run on.
      usable_cores: number of cores whose time it may use: fewer where its container has a quota.

    Returns:
      the share; None where it can't be told.
    """
    elapsed_sec = after.now - before.now
    if elapsed_sec < _LEAST_SEC or before.of_cores is None or after.of_cores is None:
        return None
    own_sec = after.own - before.own
    of_cores_sec = after.of_cores - before.of_cores
    if of_cores_sec < own_sec / 2:  # Some sandboxes have files of zeros.
        return None
    # With a quota others take nothing away while enough cores are idle: only what is left counts.
    left_sec = cores * elapsed_sec - max(0.0, of_cores_sec - own_sec)
    lost_sec = max(0.0, usable_cores * elapsed_sec - left_sec)
    has_quota = usable_cores < cores
    if has_quota and before.of_container is not None and after.of_container is not None:
        # The container's other processes use the quota up.
        lost_sec = max(lost_sec, after.of_container - before.of_container - own_sec)
    return min(1.0, lost_sec / (usable_cores * elapsed_sec))


def is_busy(share: float | None) -> bool:
    """Returns whether others took so much that what was timed meanwhile means little."""
    return share is not None and share > _BUSY_SHARE


class LoadMeter:
    """Measures the share of the cores that other processes take, from its creation on."""

    def __init__(self, usable_cores: int) -> None:
        """Begins.

        Args:
          usable_cores: number of cores whose time this process may use, see `others_share`.
        """
        self._usable_cores = usable_cores
        self._before = _read()

    def others_share(self) -> float | None:
        """Returns the share until now, 0 to 1; None: it can't be told, or it is too early."""
        return others_share(
            self._before,
            _read(),
            cores=len(os.sched_getaffinity(0)),
            usable_cores=self._usable_cores,
        )
