"""Cross-entropy and weight decay, in float32 whatever the precision of the network."""

from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import Config, ModelConfig
from trainer.graph import images
from trainer.inputs.pipeline import Batch


class Losses(NamedTuple):
    """The losses of a batch, each float32 [].

    Attributes:
      total: sum of the others and of whatever the network adds to REGULARIZATION_LOSSES.
      cross_entropy: mean over the batch.
      weight_decay: see `build_weight_decay`.
    """

    total: tf.Tensor
    cross_entropy: tf.Tensor
    weight_decay: tf.Tensor


def build_cross_entropy(
    logits: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Adds the cross-entropy of each example: float32 [batch].

    Args:
      logits: float32 [batch, num_classes].
      targets: float32 [batch, num_classes]: share of every class in each example.
      label_smoothing: share of the target that is spread evenly over all classes.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def build_weight_decay(config: ModelConfig) -> tf.Tensor:
    """Adds the weight-decay loss, float32 [], of kernels alone: slim names them `weights`."""
    kernels = [v for v in tf1.trainable_variables() if v.op.name.endswith("/weights")]
    if not kernels:
        return tf.constant(0.0)
    return config.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


def build_losses(config: Config, logits: tf.Tensor, batch: Batch) -> Losses:
    """Adds the losses of a batch; `logits` are float32 [batch, num_classes]."""
    smoothing = config.optimizer.label_smoothing
    targets = images.targets(batch, logits.shape[-1])
    cross_entropy = tf.reduce_mean(build_cross_entropy(logits, targets, smoothing))
    weight_decay = build_weight_decay(config.model)
    others = [tf.cast(term, tf.float32) for term in tf1.losses.get_regularization_losses()]
    return Losses(tf.add_n([cross_entropy, weight_decay, *others]), cross_entropy, weight_decay)
