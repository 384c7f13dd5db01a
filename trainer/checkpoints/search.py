"""Verifies checkpoints and finds the newest good one."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import layout
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.manifest import Entry, Manifest
from trainer.config import RunConfig
from trainer.errors import UserError
from trainer.process import texts


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search for a checkpoint.

    Attributes:
      prefix: prefix of the newest good checkpoint; None where there is no checkpoint at all.
      step: number of updates made when it was saved; 0 without a checkpoint.
      skipped: one line for each newer checkpoint that is damaged.
      entry: its entry in the manifest; None where it has none.
      damaged: the steps of the newer checkpoints that are damaged.
    """

    prefix: str | None
    step: int
    skipped: tuple[str, ...]
    entry: Entry | None = dataclasses.field(default=None, compare=False)
    damaged: tuple[int, ...] = dataclasses.field(default=(), compare=False)


def damage(prefix: str) -> str | None:
    """Reads a whole checkpoint, checksums included; returns what is wrong with it, or None."""
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
        return texts.first_line(error)
    return None


def find_newest(logdir: str, *, flag: str = "logdir") -> Found:
    """Finds the newest checkpoint that verifies.

    Its files are compared with the manifest; a checkpoint that is not in the manifest is read
    whole. The state file `checkpoint` is not used: it may be missing, outdated or damaged.

    Raises:
      UserError: there are checkpoints, but every one is damaged.
    """
    folder = Path(logdir)
    manifest = checkpoint_manifest.read(folder)
    skipped = [manifest.fault] if manifest.fault else []
    steps = {*layout.steps_in(logdir), *_steps_with_files(folder, manifest)}
    damaged: list[int] = []
    for step in sorted(steps, reverse=True):
        prefix, entry = layout.prefix_of(logdir, step), manifest.find(step)
        reason = damage(prefix) if entry is None else checkpoint_manifest.fault_in(folder, entry)
        if reason is None:
            return Found(prefix, step, tuple(skipped), entry, tuple(damaged))
        damaged.append(step)
        skipped.append(f"{prefix} is damaged ({reason})")
    if steps:
        raise UserError(
            f"--{flag}: no checkpoint in {logdir} can be read; the newest: {skipped[-len(steps)]}. "
            "Bring back a good one, or choose another folder"
        )
    return Found(None, 0, tuple(skipped))


def _steps_with_files(folder: Path, manifest: Manifest) -> list[int]:
    """Returns the steps in the manifest that still have files: others were removed on purpose."""
    return [
        entry.step
        for entry in manifest.entries
        if any((folder / file.name).exists() for file in entry.files)
    ]


class Chosen(NamedTuple):
    """The checkpoint to use.

    Attributes:
      prefix: its prefix.
      remarks: one line for each newer one that is damaged.
    """

    prefix: str
    remarks: tuple[str, ...] = ()


def folder_of(given: str) -> Path | None:
    """Returns the folder that a value of --init_checkpoint means; None: it means a checkpoint."""
    path = Path(given)
    if layout.is_prefix(given):
        return None
    return path if path.is_dir() else path.parent if path.name == layout.STATE else None


def resolve(given: str, *, flag: str = "init_checkpoint") -> Chosen:
    """Returns the checkpoint that a value of --init_checkpoint means, or of another flag.

    Besides a prefix this can be one of a checkpoint's files, the one file of a checkpoint of
    TensorFlow's format V1, a folder, or the file `checkpoint` in it: then it is the newest good
    checkpoint there, of a run's or else of others.

    Raises:
      UserError: that folder has no checkpoint, or several of which none is the newest; or the file
        is none.
    """
    folder = folder_of(given)
    if folder is not None:
        found = find_newest(str(folder), flag=flag)
        if found.prefix is None:
            return resolve(str(folder / _choose_foreign(folder, flag)), flag=flag)
        return Chosen(found.prefix, found.skipped)
    path = Path(given)
    prefix = given if layout.is_prefix(given) else layout.FILE_ENDING.sub("", given)
    if path.is_file() and prefix == given:
        if damage(given) is not None:
            of_keras = path.suffix in (".keras", ".h5")
            raise UserError(
                f"--{flag}: {given} is one file, which must be a checkpoint of TensorFlow's format "
                "V1 then: it is none, or damaged"
                + (". scripts/convert_keras_weights.py makes one of it" if of_keras else "")
            )
        return Chosen(given)
    if flag == "checkpoint" and not layout.is_prefix(prefix):
        raise UserError(
            "--checkpoint: must be latest, best, or a checkpoint's prefix, file or folder, got "
            f"{given!r}"
        )
    return Chosen(prefix)


def _choose_foreign(folder: Path, flag: str) -> str:
    """Returns the name of the newest checkpoint in a folder that other programs have filled.

    Raises:
      UserError: there is none, or which of several is the newest can't be told by their steps.
    """
    names = layout.list_foreign(folder)
    if not names:
        raise UserError(f"--{flag}: {folder} has no checkpoint model.ckpt-*")
    stems = {name.rpartition("-")[0] for name in names}
    steps = {name: name.rpartition("-")[2] for name in names}
    if len(names) > 1 and not (len(stems) == 1 and all(map(str.isdecimal, steps.values()))):
        shown = ", ".join(texts.printable(name) for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"--{flag}: {folder} has several checkpoints, none of them a run's: give one of "
            f"{shown}{more}"
        )
    return max(names, key=lambda name: int(steps[name]) if steps[name].isdecimal() else 0)


def choose(config: RunConfig) -> Chosen:
    """Returns the checkpoint to use: the one that is named, or the newest good one in --logdir.

    Raises:
      UserError: there is no checkpoint.
    """
    given = config.chosen_checkpoint
    if config.checkpoint == "best" and not Path(given or "").is_dir():
        raise UserError(
            f"--checkpoint: {config.logdir} has no best checkpoint, since none was evaluated there"
        )
    if given is not None:
        flag = "init_checkpoint" if given == config.init_checkpoint else "checkpoint"
        return resolve(given, flag=flag)
    if config.logdir is None:
        raise UserError("--logdir: must be given, or --init_checkpoint, got neither")
    found = find_newest(config.logdir)
    if found.prefix is None:
        raise UserError(f"--logdir: must have a checkpoint, got {config.logdir}")
    return Chosen(found.prefix, found.skipped)


def step_of(prefix: str) -> int:
    """Returns the step at which a good checkpoint was saved; 0 where it does not say."""
    reader = tf.train.load_checkpoint(prefix)
    name = tf1.GraphKeys.GLOBAL_STEP
    return int(reader.get_tensor(name)) if reader.has_tensor(name) else 0
