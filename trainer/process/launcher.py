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


_RENDEZVOUS = "HOROVOD_GLOO_RENDEZVOUS_ADDR"


def find(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """Returns the launcher of this process; None where it was started by hand.

    What the launcher's variables say must make sense; `check` says where they do not.
    """
    for name, rank, size in _LAUNCHERS:
        if environ.get(rank, "").isdecimal() and environ.get(size, "").isdecimal():
            return Launched(name, int(environ[rank]), int(environ[size]))
    return None


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Checks what launchers say of this process's place, before libraries go by it.

    Raises:
      ConfigError: a variable is no number, or Horovod would wait for workers that it cannot find.
    """
    for name, rank, size in _LAUNCHERS:
        for variable in (rank, size) if rank in environ and size in environ else ():
            if not environ[variable].isdecimal():
                raise ConfigError(
                    f"{variable}: must be a number, as {name} sets it, got {environ[variable]!r}. "
                    "Unset it, or start the workers by a launcher",
                    known_to_all=False,
                )
    launched = find(environ)
    if launched is None:
        return
    if launched.rank >= launched.size:
        raise ConfigError(
            f"rank {launched.rank} of {launched.size} workers: must be less, as {launched.name} "
            "sets it. Unset its variables, or start the workers by a launcher",
            known_to_all=False,
        )
    by_horovodrun = launched.name == "horovodrun" and launched.size > 1
    if by_horovodrun and _RENDEZVOUS not in environ:
        raise ConfigError(
            f"HOROVOD_RANK: must not be set without {_RENDEZVOUS}, where the workers meet, got "
            f"{launched.rank}. Unset it and HOROVOD_SIZE, or start the workers by horovodrun",
            known_to_all=False,
        )


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
