"""The cores that this worker may use: its share of the host's, within its container's quota."""

import contextlib
import math
import os
from fractions import Fraction
from pathlib import Path

import tensorflow as tf

from trainer.process import launcher, settings


def _quota_cores() -> int:
    """Returns the CPU quota of this container, cores, rounded up; all cores where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(float(quota) / float(period))
    except (OSError, ValueError):  # No such controller, or a quota of "max".
        return os.cpu_count() or 1


def available_cores() -> int:
    """Returns how many cores this process may use: its affinity, within its container's quota."""
    return min(len(os.sched_getaffinity(0)), _quota_cores())


def _is_bound() -> bool:
    """Returns whether this worker has its cores for itself, by its launcher or by `bind_worker`."""
    by_slurm = "mask" in os.environ.get("SLURM_CPU_BIND", "")
    return by_slurm or "OMPI_MCA_orte_bound_at_launch" in os.environ or settings.BOUND in os.environ


def worker_cores(local_size: int) -> int:
    """Returns one worker's share of the cores, with `local_size` workers on this host.

    A core that several workers may use is shared by them.
    """
    if local_size == 1 or settings.BOUND in os.environ:
        return available_cores()
    of_workers = launcher.find_cores_of_workers(local_size)
    if not of_workers:
        return available_cores() if _is_bound() else max(1, available_cores() // local_size)
    own = os.sched_getaffinity(0)
    shares = [Fraction(1, max(1, sum(core in each for each in of_workers))) for core in own]
    cores, quota = math.floor(sum(shares)), _quota_cores()
    if quota < len(set().union(*of_workers)):
        cores = min(cores, quota // local_size)
    return max(1, cores)


def bind_worker(local_rank: int, local_size: int) -> None:
    """Binds all threads of this worker to its own share of the host's cores.

    Where there is no GPU, every core computes, and a thread that strays to another worker's core
    holds both workers up (2 workers of a core each, resnet_v2_50, bfloat16: 3 % per step).

    Some workers are left unbound: those of other launchers than horovodrun, which bind them as
    their own options say; those with fewer cores than workers; and those of a container that has a
    quota of cores instead of a set of them, since other programs run on these cores too.
    """
    launched = launcher.find()
    if launched is None or launched.name != "horovodrun":
        return
    cores = sorted(os.sched_getaffinity(0), key=_locate_core)
    shared = len(cores) != available_cores()
    if local_size == 1 or len(cores) < local_size or shared or _is_bound():
        return
    if tf.config.list_physical_devices("GPU"):
        return
    begin, end = (len(cores) * rank // local_size for rank in (local_rank, local_rank + 1))
    share = cores[begin:end]
    try:
        os.sched_setaffinity(0, share)
    except OSError:  # Some sandboxes do not have this system call.
        return
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # The thread has ended since.
            os.sched_setaffinity(int(thread), share)
    os.environ[settings.BOUND] = ",".join(str(core) for core in share)


def _locate_core(core: int) -> tuple[int, ...]:
    """Returns a sort key by which cores of a socket, and the threads of a core, are neighbours."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        place = [int((folder / name).read_text()) for name in ("physical_package_id", "core_id")]
    except (OSError, ValueError):  # Not every machine has these files.
        place = []
    return (*place, core)
