"""Default arguments of a residual network's layers: slim's `resnet_arg_scope`."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from models.slim_compat import slim

UPDATE_OPS = tf.compat.v1.GraphKeys.UPDATE_OPS


@slim.add_arg_scope
def training_mode(requested: bool, is_training: bool | None = None) -> bool:
    """Returns whether BN uses batch statistics: as the network's caller requested, unless frozen.

    Args:
      requested: the network's own argument `is_training`.
      is_training: the arg scope's mode, which only `resnet_arg_scope(is_training=...)` sets. False
        freezes BN, since a caller who says it there leaves the network's argument at its default,
        True.
    """
    return False if is_training is False else requested


def resnet_arg_scope(
    weight_decay: float = 0.0001,
    batch_norm_decay: float = 0.997,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_scale: bool = True,
    activation_fn: Callable[..., tf.Tensor] | None = tf.nn.relu,
    use_batch_norm: bool = True,
    batch_norm_updates_collections: Any = UPDATE_OPS,
    *,
    is_training: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns the arg scope of a residual network, to be entered with `slim.arg_scope`.

    Args:
      weight_decay: the factor in each convolution's regularization loss, which is
        weight_decay * sum(weights^2) / 2 over its kernel alone: not over biases, beta and gamma.
      batch_norm_decay: the share of the old value that BN's moving statistics keep at each update.
      batch_norm_epsilon: the number that is added to BN's variance.
      batch_norm_scale: whether BN multiplies by a trained gamma.
      activation_fn: the function applied after each convolution and its BN. None: no activation.
      use_batch_norm: whether convolutions are followed by BN.
      batch_norm_updates_collections: the graph collection, or collections, by name, to which the
        ops are added that update the moving statistics. None: they run with the layer itself.
      is_training: BN's mode. False: inference, whatever the network's own argument says. None or
        True: that argument decides.

    Returns:
      The scope: the default arguments of each slim layer.
    """
    batch_norm_params = {
        "decay": batch_norm_decay,
        "epsilon": batch_norm_epsilon,
        "scale": batch_norm_scale,
        "updates_collections": batch_norm_updates_collections,
    }
    mode = {} if is_training is None else {"is_training": is_training}
    with (
        slim.arg_scope(
            [slim.conv2d],
            weights_regularizer=slim.l2_regularizer(weight_decay),
            # He initialization, arXiv:1502.01852: variance 2 / fan-in.
            weights_initializer=slim.variance_scaling_initializer(),
            activation_fn=activation_fn,
            normalizer_fn=slim.batch_norm if use_batch_norm else None,
            normalizer_params=batch_norm_params,
        ),
        slim.arg_scope([slim.batch_norm], **batch_norm_params, **mode),
        slim.arg_scope([training_mode], **mode),
        # For pool1 on maps of even size: the released checkpoints were trained with SAME.
        slim.arg_scope([slim.max_pool2d], padding="SAME") as scope,
    ):
        return scope
