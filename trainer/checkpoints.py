"""Saves checkpoints, verifies them, finds the newest good one, restores it.

A checkpoint is what `tf.train.Saver` writes, as TensorFlow's and slim's tools read it:
`<logdir>/model.ckpt-<step>.index` and `.data-00000-of-00001`, and the state file `checkpoint`.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import atomic_file
from trainer.config import RunConfig, UserError

_INDEX = re.compile(r"model\.ckpt-(\d+)\.index")


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search for a checkpoint.

    Attributes:
      prefix: of the newest good checkpoint; None where there is no checkpoint at all.
      step: updates made when it was saved; 0 without one.
      skipped: one line for each newer one that is damaged.
    """

    prefix: str | None
    step: int
    skipped: tuple[str, ...]


def damage(prefix: str) -> str | None:
    """Reads a whole checkpoint, checksums included; returns what is wrong with it, or None."""
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
        return str(error).splitlines()[0]
    return None


def steps_in(logdir: str) -> list[int]:
    """Steps of the checkpoints in a folder, newest first, whether good or damaged."""
    folder = Path(logdir)
    if not folder.is_dir():
        return []
    found = (_INDEX.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def prefix_of(logdir: str, step: int) -> str:
    """The checkpoint prefix of a step."""
    return str(Path(logdir) / f"model.ckpt-{step}")


def find_newest(logdir: str) -> Found:
    """Finds the newest checkpoint that verifies.

    The state file `checkpoint` is not asked: it may be missing, old or garbage.

    Raises:
      UserError: there are checkpoints, but every one is damaged.
    """
    skipped: list[str] = []
    for step in steps_in(logdir):
        prefix = prefix_of(logdir, step)
        reason = damage(prefix)
        if reason is None:
            return Found(prefix, step, tuple(skipped))
        skipped.append(f"{prefix} is damaged ({reason})")
    if skipped:
        raise UserError(
            f"--logdir: no checkpoint in {logdir} can be read; the newest: {skipped[0]}. "
            "Bring back a good one, or choose another folder"
        )
    return Found(None, 0, ())


class Store:
    """Saves checkpoints into a folder, keeps the newest, and restores from them: rank 0's.

    Attributes:
      story: what `restore` did, for the console.
    """

    def __init__(self, config: RunConfig, logdir: str, variables: Sequence[tf.Variable]) -> None:
        """Adds the operations that save to the default graph.

        Args:
          config: what to start from, and how many checkpoints to keep.
          logdir: the folder.
          variables: what to save and to restore.
        """
        self._config = config
        self._logdir = Path(logdir)
        self._variables = variables
        self._network = network_variables()
        self._saver = tf1.train.Saver(variables, max_to_keep=None)
        self.story: tuple[str, ...] = ()

    def restore(self, session: tf1.Session) -> None:
        """Loads what the run goes on from: the newest good checkpoint, or --init_checkpoint.

        Raises:
          UserError: --resume forbids what is there, or a checkpoint can't be loaded.
        """
        found = find_newest(str(self._logdir))
        if found.prefix is not None and self._config.resume == "never":
            raise UserError(
                f"--resume: must not be never where --logdir has a checkpoint, got {found.prefix}"
            )
        if found.prefix is None and self._config.resume == "must":
            raise UserError(
                f"--resume: must not be must where --logdir has no checkpoint, got {self._logdir}"
            )
        if found.prefix is not None:
            restore(session, found.prefix, self._variables)
            self.story = (*found.skipped, f"resumed from {found.prefix}")
        else:
            self.story = initialize(session, self._config.init_checkpoint, self._network)

    def save(self, session: tf1.Session, step: int) -> None:
        """Saves a checkpoint: aside, read back, synced, renamed; then removes the oldest.

        Raises:
          OSError: it could not be written; the earlier ones are still there.
        """
        aside = self._logdir / ".saving"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            prefix = str(aside / f"model.ckpt-{step}")
            self._saver.save(session, prefix, write_meta_graph=False, write_state=False)
            reason = damage(prefix)
            if reason is not None:
                raise OSError(f"it reads back damaged: {reason}")
            # The index comes last: without it a checkpoint is not there.
            for path in sorted(aside.iterdir(), key=lambda path: path.suffix == ".index"):
                atomic_file.sync(path)
                path.replace(self._logdir / path.name)
            atomic_file.sync(self._logdir)
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        steps = steps_in(str(self._logdir))
        for step in steps[self._config.keep_checkpoints :]:
            # The index goes first, for the same reason.
            for path in sorted(self._logdir.glob(f"model.ckpt-{step}.*"), reverse=True):
                path.unlink(missing_ok=True)
        kept = [f"model.ckpt-{step}" for step in reversed(steps[: self._config.keep_checkpoints])]
        lines = [f'model_checkpoint_path: "{kept[-1]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in kept]
        atomic_file.write_text(self._logdir / "checkpoint", "\n".join(lines) + "\n")


class NullStore(Store):
    """What ranks other than 0 get, whose variables come by broadcast, and runs without --logdir."""

    def __init__(self, init_checkpoint: str | None = None) -> None:
        self._init_checkpoint = init_checkpoint
        self._network = network_variables()
        self.story = ()

    def restore(self, session: tf1.Session) -> None:
        self.story = initialize(session, self._init_checkpoint, self._network)

    def save(self, session: tf1.Session, step: int) -> None:
        del session, step


def create_store(config: RunConfig, *, rank: int, variables: Sequence[tf.Variable]) -> Store:
    """The store of one worker of a run."""
    if rank != 0:
        return NullStore()
    if config.logdir is None:
        return NullStore(config.init_checkpoint)
    return Store(config, config.logdir, variables)


def network_variables() -> list[tf.Variable]:
    """The network's variables in the default graph: trained ones and moving statistics."""
    found = [
        *tf1.trainable_variables(),
        *tf1.get_collection(tf1.GraphKeys.MODEL_VARIABLES),
    ]
    return list({variable.op.name: variable for variable in found}.values())


def choose(config: RunConfig) -> str:
    """The checkpoint to evaluate, export or predict with: --init_checkpoint or --logdir's newest.

    Raises:
      UserError: there is none.
    """
    if config.init_checkpoint is not None:
        return config.init_checkpoint
    if config.logdir is None:
        raise UserError("--logdir: must be given, or --init_checkpoint, got neither")
    found = find_newest(config.logdir)
    if found.prefix is None:
        raise UserError(f"--logdir: must have a checkpoint, got {config.logdir}")
    return found.prefix


def step_of(prefix: str) -> int:
    """The steps taken before a good checkpoint was saved; 0 where it does not say."""
    reader = tf.train.load_checkpoint(prefix)
    name = tf1.GraphKeys.GLOBAL_STEP
    return int(reader.get_tensor(name)) if reader.has_tensor(name) else 0


def count_classes(prefix: str) -> int:
    """The classes of the network in a checkpoint: the width of its last layer, `logits`.

    Raises:
      UserError: it can't be read, or has no such layer.
    """
    shapes = _open(prefix).get_variable_to_shape_map()
    widths = {shape[-1] for name, shape in shapes.items() if f"/{name}".endswith("/logits/weights")}
    if len(widths) != 1:
        raise UserError(f"checkpoint {prefix} has no layer `logits` that tells how many classes")
    return widths.pop()


def initialize(
    session: tf1.Session, prefix: str | None, variables: Sequence[tf.Variable]
) -> tuple[str, ...]:
    """Loads a network's variables from --init_checkpoint, if it is given; says what was done."""
    if prefix is None:
        return ()
    left = restore_weights(session, prefix, variables, new_logits=True)
    lines = (f"started from the weights of {prefix}",)
    return (*lines, f"initialized afresh: {', '.join(left)}") if left else lines


def restore(session: tf1.Session, prefix: str, variables: Sequence[tf.Variable]) -> None:
    """Loads every variable from a checkpoint.

    Raises:
      UserError: the checkpoint is another network's or another optimizer's.
    """
    reader = tf.train.load_checkpoint(prefix)
    saved = reader.get_variable_to_shape_map()
    wanted = {variable.op.name for variable in variables}
    extra = [f"{name} is not in this network" for name in sorted(saved) if name not in wanted]
    _refuse_differences(prefix, [*_differences(saved, variables), *extra])
    _load(session, reader, variables)


def restore_weights(
    session: tf1.Session, prefix: str, variables: Sequence[tf.Variable], *, new_logits: bool
) -> list[str]:
    """Loads a network's variables.

    Args:
      session: whose variables are loaded.
      prefix: of the checkpoint, which may hold more: optimizer slots, other heads.
      variables: of the network.
      new_logits: whether logits of another number of classes keep their initial values.

    Returns:
      the names of the variables that keep their initial values.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it is another network's.
    """
    reader = _open(prefix)
    saved = reader.get_variable_to_shape_map()
    left = [
        variable
        for variable in variables
        if new_logits and "/logits/" in f"/{variable.op.name}" and _differences(saved, [variable])
    ]
    kept = {variable.op.name for variable in left}
    wanted = [variable for variable in variables if variable.op.name not in kept]
    _refuse_differences(prefix, _differences(saved, wanted))
    _load(session, reader, wanted)
    return sorted(kept)


def _open(prefix: str) -> Any:
    """A reader of a checkpoint.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    if not Path(f"{prefix}.index").is_file():
        raise UserError(f"--init_checkpoint: must be the prefix of a checkpoint, got {prefix}")
    reason = damage(prefix)
    if reason is not None:
        raise UserError(f"--init_checkpoint: must be readable, got {prefix} ({reason})")
    return tf.train.load_checkpoint(prefix)


def _differences(saved: Mapping[str, Sequence[int]], variables: Sequence[tf.Variable]) -> list[str]:
    """What keeps variables from being loaded, a few words for each."""
    lines = []
    for variable in variables:
        name, shape = variable.op.name, variable.shape.as_list()
        if name not in saved:
            lines.append(f"{name} is not in the checkpoint")
        elif list(saved[name]) != shape:
            lines.append(
                f"{name} is {list(saved[name])} in the checkpoint, {shape} in this network"
            )
    return lines


def _refuse_differences(prefix: str, differences: Sequence[str]) -> None:
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"checkpoint {prefix} is of another network or optimizer: "
            f"{'; '.join(differences[:3])}{more}. Give the flags that it was made with, or "
            "another --logdir or --init_checkpoint"
        )


def _load(session: tf1.Session, reader: Any, variables: Sequence[tf.Variable]) -> None:
    """Feeds saved values to the variables' initializers: the graph may be finalized."""
    for variable in variables:
        initial_value = variable.initializer.inputs[1]
        session.run(variable.initializer, {initial_value: reader.get_tensor(variable.op.name)})
