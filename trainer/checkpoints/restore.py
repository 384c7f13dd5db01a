"""Loads variables from a checkpoint: all of a run, or the weights of a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import layout, search
from trainer.errors import UserError


def network_variables() -> list[tf.Variable]:
    """Returns the network's variables in the default graph: trained ones and moving statistics."""
    found = [
        *tf1.trainable_variables(),
        *tf1.get_collection(tf1.GraphKeys.MODEL_VARIABLES),
    ]
    return list({variable.op.name: variable for variable in found}.values())


def count_classes(prefix: str) -> int:
    """Returns the number of classes of a checkpoint's network: the width of its layer `logits`.

    Raises:
      UserError: the checkpoint can't be read, or has no such layer.
    """
    found = _width_of_logits(_open(prefix))
    if found is None:
        raise UserError(f"checkpoint {prefix} has no layer `logits` that tells how many classes")
    return found


def find_classes(prefix: str) -> int | None:
    """Returns the number of classes of a checkpoint's network; None where it can't be told."""
    try:
        return _width_of_logits(tf.train.load_checkpoint(prefix))
    except (tf.errors.OpError, ValueError, RuntimeError):  # It is damaged.
        return None


def _width_of_logits(reader: Any) -> int | None:
    """Returns the width of the layer `logits`; None where there is not one such layer."""
    shapes = reader.get_variable_to_shape_map()
    widths = {shape[-1] for name, shape in shapes.items() if f"/{name}".endswith("/logits/weights")}
    return widths.pop() if len(widths) == 1 else None


def initialize(
    session: tf1.Session, prefix: str | None, variables: Sequence[tf.Variable]
) -> tuple[str, ...]:
    """Loads a network's variables from --init_checkpoint, if given; returns messages about it."""
    if prefix is None:
        return ()
    chosen = search.resolve(prefix)
    left = restore_weights(session, chosen.prefix, variables, new_logits=True)
    lines = (*chosen.remarks, f"started from the weights of {chosen.prefix}")
    return (*lines, f"initialized afresh: {', '.join(left)}") if left else lines


def restore(session: tf1.Session, prefix: str, variables: Sequence[tf.Variable]) -> None:
    """Loads every variable from a checkpoint.

    Raises:
      UserError: the checkpoint is of another network or of another optimizer.
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
      session: the session that holds the variables.
      prefix: prefix of the checkpoint, which may hold more: optimizer slots, other heads.
      variables: the network's variables.
      new_logits: whether logits of another number of classes keep their initial values.

    Returns:
      the names of the variables that keep their initial values.

    Raises:
      UserError: the checkpoint is missing, damaged, or of another network.
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
    """Opens a checkpoint for reading.

    Raises:
      UserError: the checkpoint is missing or damaged.
    """
    if not layout.is_prefix(prefix):
        raise UserError(f"--init_checkpoint: must be the prefix of a checkpoint, got {prefix}")
    reason = search.damage(prefix)
    if reason is not None:
        raise UserError(f"--init_checkpoint: must be readable, got {prefix} ({reason})")
    return tf.train.load_checkpoint(prefix)


def _differences(saved: Mapping[str, Sequence[int]], variables: Sequence[tf.Variable]) -> list[str]:
    """Returns what keeps variables from being loaded, one phrase for each of them."""
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
    assign(session, [(variable, reader.get_tensor(variable.op.name)) for variable in variables])


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
