"""What one worker's session may use: its GPU, its share of the cores."""

import math
import os
from pathlib import Path

import tensorflow as tf

from trainer import launcher
from trainer.config import UserError


def _quota_cores() -> int:
    """CPU quota of this container, cores, rounded up; all cores where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(float(quota) / float(period))
    except (OSError, ValueError):  # No such controller, or a quota of "max".
        return os.cpu_count() or 1


def available_cores() -> int:
    """Cores that this process may use: its CPU affinity, within its container's quota."""
    return min(len(os.sched_getaffinity(0)), _quota_cores())


def worker_cores(local_size: int) -> int:
    """One worker's share of the cores, with `local_size` workers on this host."""
    slurm_binds = "mask" in os.environ.get("SLURM_CPU_BIND", "")
    if slurm_binds or "OMPI_MCA_orte_bound_at_launch" in os.environ:
        return available_cores()  # The launcher has bound each worker to its own already.
    return max(1, available_cores() // local_size)


def create_config(
    *, local_rank: int = 0, local_size: int = 1, xla: bool = False
) -> tf.compat.v1.ConfigProto:
    """The configuration of every session of this process.

    Args:
      local_rank: of this worker on its host: it takes the GPU of that number, where there are GPUs.
      local_size: workers on this host: they share its cores evenly.
      xla: compile clusters of operations with XLA.

    Raises:
      UserError: there are GPUs, but fewer than workers.
    """
    gpus = tf.config.list_physical_devices("GPU")
    threads = worker_cores(local_size)
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        # On a CPU one operation at a time has all threads: two would take the cache from each
        # other (2 cores, resnet_v2_50: 2 % per step).
        inter_op_parallelism_threads=threads if gpus else 1,
    )
    launched = launcher.find()
    if len(gpus) == 1 and launched is not None and launched.name != "horovodrun":
        local_rank, local_size = 0, 1  # srun and mpirun can give each worker its own GPU alone.
    if gpus:
        if local_size > len(gpus):
            raise UserError(
                f"{local_size} workers on this host, but {len(gpus)} GPUs: start one worker per GPU"
            )
        config.gpu_options.visible_device_list = str(local_rank)
        config.gpu_options.allow_growth = True
    if xla:
        config.graph_options.optimizer_options.global_jit_level = tf.compat.v1.OptimizerOptions.ON_1
    return config
