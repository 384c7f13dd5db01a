"""What the benchmark times: each pass as a graph whose one fetched scalar needs all of its work."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import flops, graph
from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import AnyDataset
from trainer.inputs.device import normalize


class Target(NamedTuple):
    """A pass that can be timed.

    Nothing of it can be pruned, folded or hoisted: the input is a variable, not a constant, and
    `fetch` is a scalar that depends, and not linearly, on every element of what the pass is to
    compute. An operation that only waits for pure ones would be removed with them.

    Attributes:
      label: of the closing line.
      fetch: float32 [].
      images: per run.
      flops: of convolutions and matrix products, per run.
      feeds: values of placeholders.
      initializers: to be run once before, in this order, with their feeds.
    """

    label: str
    fetch: tf.Tensor
    images: int
    flops: int
    feeds: dict[tf.Tensor, float]
    initializers: tuple[tuple[tf.Operation, dict[tf.Tensor, int]], ...]


def build_forward(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """The network's logits, with is_training False."""
    stream = dataset.build_train(group.worker, seed=config.run.seed)
    logits = graph.build_logits(
        config.model,
        normalize(stream.batch.images, config.data),
        num_classes=dataset.info.num_classes,
        is_training=False,
    )
    fetch = tf.reduce_max(logits)
    return Target(
        label="Forward",
        fetch=fetch,
        images=config.data.batch_size,
        flops=flops.count_flops(flops.list_needed_operations([fetch])),
        feeds={},
        initializers=((stream.initializer, {stream.start_step: 0}),),
    )


def build_forward_backward(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """The gradient of the loss, weight decay included, by every trainable variable.

    Nothing is updated. What is fetched is the gradient's norm.
    """
    stream = dataset.build_train(group.worker, seed=config.run.seed)
    logits = graph.build_logits(
        config.model,
        normalize(stream.batch.images, config.data),
        num_classes=dataset.info.num_classes,
        is_training=True,
    )
    losses = graph.build_losses(config, logits, stream.batch)
    gradients = tf.gradients(losses.total, tf1.trainable_variables())
    fetch = tf.linalg.global_norm(gradients)
    return Target(
        label="Forward-backward",
        fetch=fetch,
        images=config.data.batch_size,
        flops=flops.count_flops(flops.list_needed_operations([fetch])),
        feeds={},
        initializers=((stream.initializer, {stream.start_step: 0}),),
    )


def build_train_step(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """The trainer's own step: gradients, update, BN's moving statistics, metrics."""
    train = graph.build_train_graph(config, group, dataset)
    with tf.control_dependencies([train.train_op]):
        fetch = tf.identity(train.metrics.loss)
    return Target(
        label="Train step",
        fetch=fetch,
        images=config.data.batch_size,
        flops=flops.count_flops(flops.list_needed_operations([fetch])),
        feeds={train.learning_rate: 1e-3},
        initializers=((train.stream.initializer, {train.stream.start_step: 0}),),
    )


def build_input(config: Config, group: Group, dataset: AnyDataset) -> Target:
    """The input pipeline alone, with the data set that the flags name."""
    stream = dataset.build_train(group.worker, seed=config.run.seed)
    return Target(
        label="Input",
        fetch=tf.cast(tf.reduce_max(stream.batch.labels), tf.float32),
        images=config.data.batch_size,
        flops=0,
        feeds={},
        initializers=((stream.initializer, {stream.start_step: 0}),),
    )


PASSES: dict[str, Callable[[Config, Group, AnyDataset], Target]] = {
    "forward": build_forward,
    "forward_backward": build_forward_backward,
    "train_step": build_train_step,
    "input": build_input,
}
