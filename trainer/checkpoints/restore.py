"""Loads variables from a checkpoint: all of a run, or the weights of a network."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from trainer.checkpoints import layout, search
from trainer.errors import UserError
from trainer.graph.averages import SUFFIX


def network_variables() -> list[tf.Variable]:
    """Returns the network's variables in the default graph: trained ones and moving statistics."""
    found = [
        *tf1.trainable_variables(),
        *tf1.get_collection(tf1.GraphKeys.MODEL_VARIABLES),
    ]
    return list({variable.op.name: variable for variable in found}.values())


def count_classes(prefix: str, given: int | None = None) -> int:
    """Returns the number of classes of a checkpoint's network: the width of its layer `logits`.

    Args:
      prefix: prefix of the checkpoint.
      given: value of --num_classes; None: it is not given.

    Raises:
      UserError: the checkpoint can't be read, has another number of classes than `given`, or has no
        such layer, and none is given.
    """
    found = _width_of_logits(open_checkpoint(prefix))
    if found is not None and given not in (None, found):
        raise UserError(f"--num_classes: must be {found}, as in {prefix}, got {given}")
    if (count := found or given) is None:
        raise UserError(f"checkpoint {prefix} has no layer `logits` that tells how many classes")
    return count


def find_classes(prefix: str) -> int | None:
    """Returns the number of classes of a checkpoint's network; None where it can't be told."""
    try:
        return _width_of_logits(tf.train.load_checkpoint(prefix))
    except (tf.errors.OpError, ValueError, RuntimeError):  # It is damaged.
        return None


def _width_of_logits(reader: Any) -> int | None:
    """Returns the width of the layer `logits`; None where there is not one such layer."""
    shapes = reader.get_variable_to_shape_map()
    widths = {shape[-1] for name, shape in shapes.items() if models.is_kernel_of_head(name)}
    return widths.pop() if len(widths) == 1 else None


def restore(session: tf1.Session, prefix: str, variables: Sequence[tf.Variable]) -> None:
    """Loads every variable from a checkpoint.

    Raises:
      UserError: the checkpoint is of another network or of another optimizer.
    """
    reader = tf.train.load_checkpoint(prefix)
    saved = reader.get_variable_to_shape_map()
    wanted = {variable.op.name for variable in variables}
    extra = [f"{name} is not in this network" for name in sorted(saved) if name not in wanted]
    names = [variable.op.name for variable in variables]
    refuse_differences(prefix, [*list_differences(list_saved(reader), variables, names), *extra])
    _load(session, reader, variables, names)


def restore_weights(
    session: tf1.Session, prefix: str, variables: Sequence[tf.Variable], *, averages: bool = False
) -> None:
    """Loads a network's variables.

    Args:
      session: the session that holds the variables.
      prefix: prefix of the checkpoint, which may hold more: optimizer slots, other heads.
      variables: the network's variables.
      averages: whether to take averaged weights, where the checkpoint has any.

    Raises:
      UserError: the checkpoint is missing, damaged, or of another network, or has no averages.
    """
    reader = open_checkpoint(prefix)
    sources = choose_sources(reader, prefix, variables, averages=averages)
    refuse_differences(prefix, list_differences(list_saved(reader), variables, sources))
    _load(session, reader, variables, sources)


def choose_sources(
    reader: Any, prefix: str, variables: Sequence[tf.Variable], *, averages: bool
) -> list[str]:
    """Returns the name under which each variable is taken from a checkpoint.

    Args:
      reader: the checkpoint.
      prefix: its prefix.
      variables: the network's variables.
      averages: value of --init_averages.

    Raises:
      UserError: averages are asked for, and the checkpoint has none.
    """
    names = [variable.op.name for variable in variables]
    if not averages:
        return names
    saved = reader.get_variable_to_shape_map()
    if not any(f"{name}{SUFFIX}" in saved for name in names):
        raise UserError(
            f"--init_averages: must be given with a checkpoint that has averaged weights "
            f"(...{SUFFIX}), got {prefix}"
        )
    return [f"{name}{SUFFIX}" if f"{name}{SUFFIX}" in saved else name for name in names]


def open_checkpoint(prefix: str) -> Any:
    """Opens a checkpoint for reading.

    Raises:
      UserError: the checkpoint is missing or damaged.
    """
    if not layout.is_prefix(prefix) and not os.path.isfile(prefix):  # A file is one of format V1.
        folder = os.path.dirname(prefix) or "."
        if steps := layout.steps_in(folder):
            raise UserError(
                f"{prefix}: is not there, or no more: {folder} has "
                f"{os.path.basename(layout.prefix_of(folder, steps[0]))}. A run removes its older "
                "checkpoints (--keep_checkpoints); start again to take the newest"
            )
        raise UserError(f"--init_checkpoint: must be the prefix of a checkpoint, got {prefix}")
    reason = search.damage(prefix)
    if reason is not None:
        raise UserError(f"--init_checkpoint: must be readable, got {prefix} ({reason})")
    return tf.train.load_checkpoint(prefix)


def list_saved(reader: Any) -> dict[str, tuple[list[int], tf.DType]]:
    """Returns the shape and the type of each of a checkpoint's variables, by name."""
    types = reader.get_variable_to_dtype_map()
    return {
        name: (list(shape), types[name])
        for name, shape in reader.get_variable_to_shape_map().items()
    }


def list_differences(
    saved: Mapping[str, tuple[list[int], tf.DType]],
    variables: Sequence[tf.Variable],
    sources: Sequence[str],
) -> list[str]:
    """Returns what keeps variables from being loaded, one phrase for each of them.

    Args:
      saved: shape and type of each of the checkpoint's variables, by name.
      variables: the network's variables.
      sources: their names in the checkpoint.
    """
    lines = []
    for variable, name in zip(variables, sources, strict=True):
        shape, dtype = variable.shape.as_list(), variable.dtype.base_dtype
        if name not in saved:
            lines.append(f"{name} is not in the checkpoint")
            continue
        theirs, type_there = saved[name]
        if theirs != shape:
            lines.append(f"{name} is {theirs} in the checkpoint, {shape} in this network")
        elif type_there != dtype and not (type_there.is_floating and dtype.is_floating):
            lines.append(
                f"{name} is {type_there.name} in the checkpoint, {dtype.name} in this network"
            )
    return lines


def refuse_differences(prefix: str, differences: Sequence[str]) -> None:
    """Raises a UserError where there are differences, with the first of them."""
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"checkpoint {prefix} is of another network or optimizer: "
            f"{'; '.join(differences[:3])}{more}. Give the flags that it was made with, or "
            "another --logdir or --init_checkpoint"
        )


def _load(
    session: tf1.Session, reader: Any, variables: Sequence[tf.Variable], sources: Sequence[str]
) -> None:
    pairs = zip(variables, sources, strict=True)
    assign(session, [(variable, reader.get_tensor(source)) for variable, source in pairs])


def assign(session: tf1.Session, values: Sequence[tuple[tf.Variable, Any]]) -> None:
    """Sets variables by feeding values to their initializers: the graph may be finalized.

    All are set in one run: TensorFlow goes through the whole graph for every new set of fetches,
    which takes 0.1 s for resnet_v2_50, and more for deeper networks.
    """
    initializers: list[tf.Operation] = []
    feeds: dict[tf.Tensor, Any] = {}
    for variable, value in values:
        initial_value = variable.initializer.inputs[1]
        if initial_value in feeds:  # It is shared with another variable.
            session.run(initializers, feeds)
            initializers, feeds = [], {}
        initializers.append(variable.initializer)
        feeds[initial_value] = value
    session.run(initializers, feeds)
