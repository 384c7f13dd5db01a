"""Cross-entropy and weight decay, in float32 whatever the precision of the network."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import Config, ModelConfig
from trainer.config.update import DECOUPLED
from trainer.graph import images
from trainer.inputs.pipeline import Batch


class Losses(NamedTuple):
    """The losses of a batch, each float32 [].

    Attributes:
      total: sum of the others and of whatever the network adds to REGULARIZATION_LOSSES.
      cross_entropy: mean over the batch; of --loss=sigmoid over all classes, too.
      weight_decay: see `build_weight_decay`.
    """

    total: tf.Tensor
    cross_entropy: tf.Tensor
    weight_decay: tf.Tensor


def build_cross_entropy(
    logits: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0, *, loss: str = "softmax"
) -> tf.Tensor:
    """Adds the cross-entropy of each example: float32 [batch].

    Args:
      logits: float32 [batch, num_classes].
      targets: float32 [batch, num_classes]: share of every class in each example.
      label_smoothing: share of the target that is spread evenly over all classes.
      loss: value of --loss. sigmoid: the mean over all classes of each one's binary cross-entropy.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    if loss == "sigmoid":
        each = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
        return tf.reduce_mean(each, axis=-1)
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def build_probabilities(logits: tf.Tensor, loss: str, name: str | None = None) -> tf.Tensor:
    """Adds the classes' probabilities, float32 [batch, num_classes].

    Args:
      logits: float32 [batch, num_classes].
      loss: value of --loss that the network was trained with. sigmoid: each class has one of its
        own, and they add up to anything.
      name: name of the operation.
    """
    function = tf.nn.sigmoid if loss == "sigmoid" else tf.nn.softmax
    return function(logits, name=name)


def is_kernel(variable: tf.Variable) -> bool:
    """Returns whether a variable is a layer's kernel: slim names them `weights`."""
    return f"/{variable.op.name}".endswith("/weights")


def is_decayed(config: ModelConfig, variable: tf.Variable) -> bool:
    """Returns whether weight decay acts on a trainable variable."""
    return config.decay_bn_and_biases or is_kernel(variable)


def build_weight_decay(config: Config, variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Adds the weight-decay loss, float32 []; 0 where the update rule decays the weights itself.

    Args:
      config: coefficient, update rule, and whether biases and BN's variables decay.
      variables: the variables that are trained.
    """
    decayed = [each for each in variables if is_decayed(config.model, each)]
    if not decayed or config.optimizer.optimizer in DECOUPLED:
        return tf.constant(0.0)
    return config.model.weight_decay * tf.add_n([tf.nn.l2_loss(each) for each in decayed])


def build_losses(
    config: Config,
    logits: tf.Tensor,
    batch: Batch,
    variables: Sequence[tf.Variable] | None = None,
) -> Losses:
    """Adds the losses of a batch.

    Args:
      config: loss, label smoothing and weight decay.
      logits: float32 [batch, num_classes].
      batch: the batch.
      variables: the variables that are trained; None: all that can be.
    """
    if variables is None:
        variables = tf1.trainable_variables()
    targets = images.targets(batch, logits.shape[-1])
    each = build_cross_entropy(
        logits, targets, config.optimizer.label_smoothing, loss=config.optimizer.loss
    )
    cross_entropy = tf.reduce_mean(each)
    weight_decay = build_weight_decay(config, variables)
    others = [tf.cast(term, tf.float32) for term in tf1.losses.get_regularization_losses()]
    return Losses(tf.add_n([cross_entropy, weight_decay, *others]), cross_entropy, weight_decay)
