"""The cores that this worker may use: its share of the host's."""

import contextlib
import math
import os
from fractions import Fraction

import tensorflow as tf

from trainer.process import host_cores, launcher, settings


def _is_bound() -> bool:
    """Returns whether this worker has its cores for itself, by its launcher or by `bind_worker`."""
    by_slurm = "mask" in os.environ.get("SLURM_CPU_BIND", "")
    return by_slurm or "OMPI_MCA_orte_bound_at_launch" in os.environ or settings.BOUND in os.environ


def worker_cores(local_size: int) -> int:
    """Returns one worker's share of the cores, with `local_size` workers on this host.

    A core that several workers may use is shared by them.
    """
    if local_size == 1 or settings.BOUND in os.environ:
        return host_cores.available_cores()
    of_workers = launcher.find_cores_of_workers(local_size)
    if not of_workers:
        available = host_cores.available_cores()
        return available if _is_bound() else max(1, available // local_size)
    own = os.sched_getaffinity(0)
    shares = [Fraction(1, max(1, sum(core in each for each in of_workers))) for core in own]
    cores, quota = math.floor(sum(shares)), host_cores.quota_cores()
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
    cores = host_cores.in_order()
    shared = len(cores) != host_cores.available_cores()
    if local_size == 1 or len(cores) < local_size or shared or _is_bound():
        return
    if tf.config.list_physical_devices("GPU"):
        return
    share = host_cores.share(cores, local_rank, local_size)
    try:
        os.sched_setaffinity(0, share)
    except OSError:  # Some sandboxes do not have this system call.
        return
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # The thread has ended since.
            os.sched_setaffinity(int(thread), share)
    os.environ[settings.BOUND] = ",".join(str(core) for core in share)
