"""The memory that training needs at least, read off the graph of a step without running it."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from models.slim_compat import BatchNormChanges
from trainer.config import Config
from trainer.graph import losses, optimizers, recompute
from trainer.graph.averages import create_averages
from trainer.graph.network import build_logits
from trainer.graph.selection import Selection


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """The memory that one worker keeps in use, bytes.

    Attributes:
      activations: tensors that the forward pass leaves for the backward pass, of one batch.
      recomputed: activations of the largest part that --recompute computes again at a time.
      variables: the network's variables, float32.
      gradients: one for each variable that is trained, float32.
      slots: variables of the update rule.
      averages: averages of --ema_decay.
      sums: sums of gradients over the batches of an update, with --accumulate_steps.
    """

    activations: int
    recomputed: int
    variables: int
    gradients: int
    slots: int
    averages: int
    sums: int

    @property
    def total(self) -> int:
        """Returns the sum without `recomputed`, which is there when some activations no longer are.

        A step needs more, for what lives shortly, and for the libraries.
        """
        return sum(dataclasses.astuple(self)) - self.recomputed


def estimate(config: Config, num_classes: int) -> TrainingMemory:
    """Builds a step of a configuration in a graph of its own, and adds up what it keeps.

    Args:
      config: network, image size, batch size, update rule, and what is trained.
      num_classes: number of logits.

    Raises:
      ConfigError: there is no such network, or a scope is none of its.
    """
    batch, size = config.data.batch_size, config.data.image_size
    with tf.Graph().as_default() as graph:
        selection = Selection(config.fine_tuning)
        images = tf1.placeholder(tf.float32, [batch, size, size, 3])
        labels = tf1.placeholder(tf.float32, [batch, num_classes])
        logits = build_logits(
            config.model,
            images,
            num_classes=num_classes,
            is_training=True,
            batch_norm=BatchNormChanges(selection.is_frozen_norm),
        )
        network = tf1.global_variables()
        trained = selection.trained_variables()
        each = losses.build_cross_entropy(logits, labels, loss=config.optimizer.loss)
        forward = graph.get_operations()
        of_all, recomputed = recompute.compute_gradients(
            tf.reduce_mean(each), trained, inputs=images, config=config.model
        )
        found = zip(of_all, trained, strict=True)
        # A variable that the loss does not use has none.
        pairs = [(gradient, variable) for gradient, variable in found if gradient is not None]
        gradients, trained = [g for g, _ in pairs], [variable for _, variable in pairs]
        backward = graph.get_operations()[len(forward) :]
        activations = _bytes_between(forward, backward, images)
        rule = optimizers.UpdateRule(config, tf.constant(1.0))
        rule.build_update(gradients, trained, tf.constant(1.0), tf.constant(True))
        slots = tf1.global_variables()[len(network) :]
        moving = selection.moving_variables()
        averages = create_averages(config.optimizer, [*trained, *moving])
        averaged = [*trained, *moving] if averages is not None else []
    return TrainingMemory(
        activations=activations,
        recomputed=recomputed.most_bytes,
        variables=_bytes_of(network),
        gradients=_bytes_of(trained),
        slots=_bytes_of(slots),
        averages=_bytes_of(averaged),
        sums=_bytes_of(trained) if config.optimizer.accumulate_steps > 1 else 0,
    )


def _bytes_between(
    forward: Sequence[tf.Operation], backward: Sequence[tf.Operation], images: tf.Tensor
) -> int:
    """Returns the size of the tensors of a batch that go from one pass to the other."""
    of_batch = {images.ref()}
    for operation in forward:  # In the order of building: inputs come first.
        if any(tensor.ref() in of_batch for tensor in operation.inputs):
            of_batch |= {tensor.ref() for tensor in operation.outputs}
    readers = (op for op in backward if op.type not in recompute.SHAPE_READERS)
    kept = {tensor.ref() for op in readers for tensor in op.inputs}
    tensors = [ref.deref() for ref in kept & of_batch]
    return recompute.count_bytes(tensors)


def _bytes_of(variables: Sequence[tf.Variable]) -> int:
    return sum(each.shape.num_elements() * each.dtype.size for each in variables)
