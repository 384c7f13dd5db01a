"""Finds out before the first step whether all workers run the same program on the same data."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from models import plug_in
from trainer.config import Config
from trainer.cpu_kernels import library, switch
from trainer.distributed import Group
from trainer.errors import UserError
from trainer.graph import precision
from trainer.inputs.dataset import DatasetInfo
from trainer.machine import gpu, session
from trainer.process import installed, own_code

_MAX_DIFFERENCES = 3
_KERNELS = "the compiled kernels"
_CONVOLUTIONS = f"{_KERNELS} of convolutions"

Facts = Mapping[str, str]


def _as_text(value: Any) -> str:
    return "missing" if value is None else str(value)


def _shorten(value: str | None) -> str:
    text = _as_text(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def flags_of(config: Config) -> Facts:
    """Returns every flag with its value."""
    values = {f"flag --{flag.name}": _as_text(flag.value) for flag in config.flags()}
    return {"flag --mode": config.mode, **values}


def code_of(config: Config) -> Facts:
    """Returns a digest of every file of this program, and of the plug-ins that the flags name."""
    facts = {}
    for package in own_code.PACKAGES:
        for name, path in own_code.list_files(package, _origin(package).parent):
            facts[f"file {name}"] = _digest(path)
    for plugged in (config.model.model, config.data.dataset):
        # A name of another form is none of a plug-in; if it is wrong, all workers refuse it alike.
        if plugged is not None and (parts := plug_in.split(plugged)):
            facts[f"file of {parts[0]}"] = _digest(_origin(parts[0]))
    return facts


def _origin(module: str) -> Path:
    """Returns a module's file.

    Raises:
      UserError: there is no such module, or its package cannot be imported.
    """
    try:
        path = plug_in.find_file(module)
    except plug_in.PlugInError as error:
        raise UserError(
            f"module {module}: must be there on every worker, got none ({error.reason})"
        ) from error
    if path is None:
        raise UserError(f"module {module}: must be there on every worker, got none")
    return path


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:  # A plug-in may be built in, or in an archive.
        return "no file"


def check_program(group: Group, config: Config) -> None:
    """Compares flags, code, versions, kernels and GPUs over all workers. A collective.

    Raises:
      UserError: a worker's flags, code, versions or compiled kernels differ from worker 0's, or two
        have the same GPU.
    """
    facts: Facts = {}
    with group.fail_together():
        versions = {f"version of {k}": v for k, v in installed.versions().items()}
        facts = {**flags_of(config), **code_of(config), **versions, **_named_kernels()}
    check(group, facts)
    check_kernels(group, precision.compute_dtype(config.model.precision))
    check_gpus(group)


def _named_kernels() -> Facts:
    """Returns a digest of the library that the environment names in place of the built one.

    Raises:
      UserError: the environment variable has a value that its rule forbids.
    """
    named = switch.read().library
    return {} if named is None else {f"library of {switch.VARIABLE}": _digest(named)}


def check_gpus(group: Group) -> None:
    """Compares the GPUs of all workers. A collective.

    Raises:
      UserError: two workers have the same one, where each would wait for the other.
    """
    name = None
    with group.fail_together():
        worker = group.worker
        number = session.find_gpu(worker.local_rank, worker.local_size)
        name = None if number is None else gpu.find_uuid(number)
    names = group.gather(name)
    for rank, name in enumerate(names):
        if name is not None and name in names[:rank]:
            raise UserError(
                f"worker {rank} of {group.worker.size} has the GPU of worker {names.index(name)} "
                f"({name}): give each its own, by the launcher's options or CUDA_VISIBLE_DEVICES"
            )


def _without_kernels(dtype: tf.DType) -> tuple[str, str]:
    """Returns which kernels are not used on this worker, and why; empty texts where all are."""
    if reason := library.reason_for_none():
        return _KERNELS, reason
    reason = library.reason_for_no_convolutions(dtype)
    return (_CONVOLUTIONS if reason else ""), reason


def check_kernels(group: Group, dtype: tf.DType) -> None:
    """Compares over all workers which compiled kernels are used. A collective.

    Args:
      group: all workers.
      dtype: the type of activations.

    Raises:
      UserError: some workers use kernels and others do not, whose results are rounded differently.
    """
    without = ("", "")
    with group.fail_together():  # The switch may have a value that is not allowed.
        without = _without_kernels(dtype)
    found = group.gather(without)
    rank = next((rank for rank, (which, _) in enumerate(found) if which != found[0][0]), None)
    if rank is None:
        return
    fewer_kernels = ["", _CONVOLUTIONS, _KERNELS]
    on, off = sorted((0, rank), key=lambda rank: fewer_kernels.index(found[rank][0]))
    which, reason = found[off]
    raise UserError(
        f"worker {off} of {group.worker.size} does without {which} "
        f"({reason}), which worker {on} uses. Give all workers the same "
        f"{switch.VARIABLE}, build and kind of CPU, or set {switch.VARIABLE}=0 for all"
    )


def check_data(group: Group, info: DatasetInfo) -> None:
    """Compares the description of the data set over all workers. A collective.

    Raises:
      UserError: a worker's data set differs from worker 0's.
    """
    fields = info._asdict()
    check(group, {f"data set's {name}": _as_text(value) for name, value in fields.items()})


def check(group: Group, facts: Facts) -> None:
    """Compares some facts over all workers. A collective.

    Digests are exchanged; the facts themselves only where the digests differ.

    Raises:
      UserError: a worker's facts differ from worker 0's; the message names the first such worker,
        and what differs.
    """
    text = json.dumps(facts, sort_keys=True)
    digests = group.gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    of_workers = group.gather(dict(facts))
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    first, other = of_workers[0], of_workers[rank]
    differences = [
        f"{name} is {_shorten(other.get(name))}, not {_shorten(first.get(name))}"
        for name in sorted({*first, *other})
        if first.get(name) != other.get(name)
    ]
    more = len(differences) - _MAX_DIFFERENCES
    shown = "; ".join(differences[:_MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(
        f"worker {rank} of {group.worker.size} does not run what worker 0 does: {shown}. "
        "Give all workers the same flags, code, packages and data"
    )
