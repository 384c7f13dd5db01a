"""Finds out which launcher started this process, from its environment."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from trainer.errors import ConfigError


class Launched(NamedTuple):
    """A launcher, and the place of this process in its job.

    Attributes:
      name: horovodrun, mpirun or srun.
      rank: rank of this process, in [0, size).
      size: number of processes in the job.
    """

    name: str
    rank: int
    size: int


# (launcher, variable of the rank, variable of the size). srun is known by SLURM_STEP_NUM_TASKS: in
# sbatch's own script, outside of any srun, Slurm sets SLURM_PROCID too.
_LAUNCHERS = (
    ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun", "PMI_RANK", "PMI_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def find(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """Returns the launcher of this process; None where it was started by hand."""
    for name, rank, size in _LAUNCHERS:
        if rank in environ and size in environ:
            return Launched(name, int(environ[rank]), int(environ[size]))
    return None


def refuse(mode: str) -> None:
    """Refuses to run a mode for a single process in several.

    Raises:
      ConfigError: a launcher started more processes than this one.
    """
    launched = find()
    if launched is not None and launched.size > 1:
        raise ConfigError(
            f"--mode={mode}: must be run as one process, got {launched.size} by {launched.name}"
        )


def is_first(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether this process prints for the whole job before its workers are connected."""
    launched = find(environ)
    return launched is None or launched.rank == 0
