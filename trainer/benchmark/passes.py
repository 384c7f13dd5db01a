"""The passes that the benchmark times: graphs whose one fetched scalar needs all of their work."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from models.slim_compat import BatchNormChanges
from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import flops, recompute, train_step
from trainer.graph.losses import build_losses
from trainer.graph.network import classify
from trainer.graph.selection import Selection
from trainer.inputs.dataset import AnyDataset
from trainer.inputs.pipeline import Stream

# Too small to move the loss far within a benchmark; the step's work does not depend on it.
_LEARNING_RATE = 1e-3


class Target(NamedTuple):
    """A pass that can be timed.

    No part of its work can be pruned, folded or hoisted: the input is a variable, not a constant,
    and `fetch` is a scalar that depends, and not linearly, on every element of the pass's result.
    (An operation that only waited for pure operations would be removed with them.)

    Attributes:
      label: name in the closing line.
      fetch: float32 []: the scalar that a run fetches.
      flops: floating-point operations of convolutions and matrix products, per run.
      flops_again: those of what --recompute runs again, which are not among them.
      feeds: values of placeholders.
      stream: the input, to be initialized once.
      begin: operation to be run once, when the variables have their values.
    """

    label: str
    fetch: tf.Tensor
    flops: int
    flops_again: int
    feeds: dict[tf.Tensor, float]
    stream: Stream
    begin: tf.Operation


def _create_target(
    label: str,
    fetch: tf.Tensor,
    stream: Stream,
    feeds: dict[tf.Tensor, float] | None = None,
    begin: tf.Operation | None = None,
) -> Target:
    needed = flops.list_needed_operations([fetch.op])
    return Target(
        label,
        fetch,
        flops.count_flops(needed),
        flops.count_flops_again(needed),
        feeds or {},
        stream,
        begin or tf.no_op(),
    )


def build_forward(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """Builds the network's logits, with is_training False."""
    stream = dataset.build_train(group.worker, seed=config.run.seed)
    logits = classify(config, stream.batch.images, num_classes=dataset.info.num_classes)
    return _create_target("Forward", tf.reduce_max(logits), stream)


def build_forward_backward(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """Builds the loss with weight decay, and its gradient by each trainable variable; no update."""
    stream = dataset.build_train(group.worker, seed=config.run.seed)
    classes = dataset.info.num_classes
    selection = Selection(config.fine_tuning)
    pixels = stream.batch.images
    logits = classify(
        config,
        pixels,
        num_classes=classes,
        is_training=True,
        batch_norm=BatchNormChanges(selection.is_frozen_norm),
    )
    variables = selection.trained_variables()
    losses = build_losses(config, logits, stream.batch, variables)
    gradients, _ = recompute.compute_gradients(
        losses.total,
        variables,
        inputs=pixels,
        config=config.model,
        gate_gradients=False,
    )
    return _create_target("Forward-backward", tf.linalg.global_norm(gradients), stream)


def build_train_step(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """Builds the trainer's own step: gradients, update, BN's moving statistics, all metrics."""
    train = train_step.build_train_graph(config, group, dataset)
    with tf.control_dependencies([train.train_op]):
        fetch = tf.add_n([tf.cast(metric, tf.float32) for metric in train.metrics])
    feeds = {train.learning_rate: _LEARNING_RATE}
    return _create_target("Train step", fetch, train.stream, feeds, train.broadcast_op.op)


def build_input(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """Builds the input pipeline alone, with the data set that the flags name."""
    stream = dataset.build_train(group.worker, seed=config.run.seed)
    # A pipeline makes the whole batch, whichever part of it is used.
    fetch = tf.cast(tf.reduce_max(stream.batch.labels), tf.float32)
    return _create_target("Input", fetch, stream)


PASSES: dict[str, Callable[[Config, Group, AnyDataset], Target]] = {
    "forward": build_forward,
    "forward_backward": build_forward_backward,
    "train_step": build_train_step,
    "input": build_input,
}
