"""The gradients of a network, in the order in which its graph makes them."""

import dataclasses

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import Config
from trainer.graph import flops
from trainer.graph.network import build_logits
from trainer.inputs.synthetic import DEFAULT_CLASSES


@dataclasses.dataclass(frozen=True)
class GradientOrder:
    """A gradient.

    Attributes:
      name: name of its variable.
      shape: its shape.
      ready: share of the forward and backward pass after which it is ready, by floating-point
        operations.
    """

    name: str
    shape: tuple[int, ...]
    ready: float


def list_gradients(config: Config) -> list[GradientOrder]:
    """Lists the gradients of all variables of a network, in the order in which they are ready.

    An operation comes when those before it in the graph are done: gradients are built from the last
    layer to the first, and one operation at a time is what workers on CPUs run, and GPUs too.
    """
    size = config.data.image_size
    with tf.Graph().as_default() as graph:
        images = tf1.placeholder(tf.float32, [1, size, size, 3])
        logits = build_logits(
            config.model,
            images,
            num_classes=config.model.num_classes or DEFAULT_CLASSES,
            is_training=True,
        )
        variables = tf1.trainable_variables()
        gradients = tf.gradients(tf.reduce_sum(tf.square(logits)), variables, gate_gradients=True)
        found = [pair for pair in zip(variables, gradients, strict=True) if pair[1] is not None]
        needed = set(flops.list_needed_operations([gradient.op for _, gradient in found]))
        done, total = {}, 0
        for operation in graph.get_operations():
            if operation in needed:
                total += flops.count_op_flops(operation)
                done[operation] = total
    listed = [
        GradientOrder(
            variable.op.name, tuple(variable.shape.as_list()), done[gradient.op] / max(total, 1)
        )
        for variable, gradient in found
    ]
    return sorted(listed, key=lambda each: each.ready)
