"""The update rules."""

import tensorflow as tf

from trainer.config import OptimizerConfig


def create_optimizer(
    config: OptimizerConfig, learning_rate: tf.Tensor
) -> tf.compat.v1.train.Optimizer:
    """Returns the optimizer that `config` names.

    Args:
      config: the rule and its momentum. Adam's moments decay by `momentum` and 0.999, with an
        epsilon of 1e-8 (arXiv:1412.6980).
      learning_rate: float32 [].
    """
    train = tf.compat.v1.train
    if config.optimizer == "sgd":
        return train.GradientDescentOptimizer(learning_rate)
    if config.optimizer == "adam":
        return train.AdamOptimizer(learning_rate, beta1=config.momentum)
    return train.MomentumOptimizer(
        learning_rate, config.momentum, use_nesterov=config.optimizer == "nesterov"
    )
