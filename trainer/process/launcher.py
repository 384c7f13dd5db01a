"""Finds out which launcher started this process, from its environment."""

import contextlib
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.errors import ConfigError
from trainer.process import identity, network


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


_LOCAL_SIZES = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
# Flags of horovodrun by which it writes more than what its workers write, or elsewhere.
_CHANGES_OUTPUT = ("--output-filename", "--prefix-output-with-timestamp", "-prefix-timestamp")
_RENDEZVOUS = "HOROVOD_GLOO_RENDEZVOUS_ADDR"
_INTERFACE = "HOROVOD_GLOO_IFACE"
_PMIX_RANK = "PMIX_RANK"


def find(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """Returns the launcher of this process; None where it was started by hand.

    What the launcher's variables say must make sense; `check` says where they do not.
    """
    for name, rank, size in _LAUNCHERS:
        if environ.get(rank, "").isdecimal() and environ.get(size, "").isdecimal():
            return Launched(name, int(environ[rank]), int(environ[size]))
    return None


def local_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """Returns how many of a job's processes are on this host; None where the launcher tells not."""
    found = (environ.get(name, "") for name in _LOCAL_SIZES)
    return next((int(value) for value in found if value.isdecimal()), None)


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Checks what launchers say of this process's place, before libraries go by it.

    Raises:
      ConfigError: a variable is no number, or workers would not find each other.
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
    if launched is None and _PMIX_RANK in environ:
        raise ConfigError(
            f"{_PMIX_RANK}: must not be set alone: prterun sets it, and does not tell how many "
            f"workers there are, got {environ[_PMIX_RANK]!r}. Start them by mpirun or horovodrun, "
            "or unset it",
            known_to_all=False,
        )
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
    if by_horovodrun and environ.get(_INTERFACE):
        _check_interface(environ[_INTERFACE])
    elif by_horovodrun:
        _check_own_name()


def _check_interface(name: str) -> None:
    """Checks that this host has the interface over which the workers are to be connected.

    Gloo listens at its address, whatever the host's own name leads to; or it ends the process.

    Raises:
      ConfigError: there is none of this name, or it has no IPv4 address.
    """
    found = network.find_interfaces()
    if name not in found:
        raise ConfigError(
            f"host {socket.gethostname()}: must have the network interface {name!r}, with an IPv4 "
            f"address, as all hosts of the run, got {', '.join(found)}. Name one that all have: "
            "horovodrun --network-interface",
            known_to_all=False,
        )


def _check_own_name() -> None:
    """Checks that this host's name leads to this host: Gloo listens there, or ends the process.

    Raises:
      ConfigError: the name has no address, or none of this host.
    """
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        addresses = sorted({str(each[4][0]) for each in found})
        reason = f"of which none is this host's ({', '.join(addresses)})"
    except (OSError, UnicodeError) as error:  # A name may have parts that DNS does not allow.
        found, reason = [], f"which it has not ({getattr(error, 'strerror', None) or error})"
    for family, kind, protocol, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as listener:
            listener.bind(address)
            return
    raise ConfigError(
        f"this host's name {name!r}: must have an address of this host, for connections of the "
        f"workers, {reason}. Add it to /etc/hosts, in a line such as '127.0.1.1 {name}'",
        known_to_all=False,
    )


def find_terminal(descriptor: int, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the file to which horovodrun passes on what its first worker writes, of a terminal.

    Args:
      descriptor: 1 for what is written to the standard output, 2 to the standard error.
      environ: environment of this process.

    Returns:
      a file that may be a terminal (see `streams.write_to_terminal`); None where it is none, where
      this is another worker or another launcher's, where horovodrun runs on another host, and where
      it was told to do more than to pass lines on.
    """
    launched = find(environ)
    if launched is None or launched.name != "horovodrun" or launched.rank != 0:
        return None
    pid = os.getpid()
    while pid := identity.parent_of(pid):
        command = identity.command_of(pid)
        if "horovodrun" in (os.path.basename(part) for part in command[:2]):
            if any(part.startswith(_CHANGES_OUTPUT) for part in command):
                return None
            file = Path(f"/proc/{pid}/fd/{descriptor}")
            with contextlib.suppress(OSError):  # It is another user's.
                return file if stat.S_ISCHR(os.stat(file).st_mode) else None
            return None
    return None


def find_cores_of_workers(local_size: int) -> list[set[int]]:
    """Returns the cores that each worker of this host may use, where the launcher started them all.

    The workers are those children of one of this process's ancestors that have a place in a job.
    Their launcher may have bound each to cores of its own, to cores that some have in common, or to
    none, and not every launcher tells (Open MPI 5 and MPICH set no variable).

    Args:
      local_size: number of workers on this host, which must all be there.

    Returns:
      as many sets as workers; none where they can't be found, as in containers of their own.
    """
    ancestor = os.getpid()
    while ancestor := identity.parent_of(ancestor):
        workers = [
            pid
            for pid in identity.children_of(ancestor)
            if find(identity.environ_of(pid)) is not None
        ]
        if len(workers) == local_size:
            with contextlib.suppress(OSError):  # One of them has ended.
                return [os.sched_getaffinity(pid) for pid in workers]
    return []


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
