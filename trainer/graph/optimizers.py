"""The update rules."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.graph import losses, scopes
from trainer.graph.decoupled import AdamW, Lamb, Lars

# Decay of the mean square, and what is added to it: those of slim's train_image_classifier.
_RMSPROP_DECAY, _RMSPROP_EPSILON = 0.9, 1.0


def create_optimizer(config: Config, learning_rate: tf.Tensor) -> tf1.train.Optimizer:
    """Returns the optimizer that `config` names.

    Args:
      config: the rule, its momentum, and the weight decay of those that decay by themselves. Adam's
        moments decay by `momentum` and 0.999, with an epsilon of 1e-8 (arXiv:1412.6980).
      learning_rate: float32 [].
    """
    rule = config.optimizer
    create: dict[str, Callable[[], tf1.train.Optimizer]] = {
        "sgd": lambda: tf1.train.GradientDescentOptimizer(learning_rate),
        "momentum": lambda: tf1.train.MomentumOptimizer(learning_rate, rule.momentum),
        "nesterov": lambda: tf1.train.MomentumOptimizer(
            learning_rate, rule.momentum, use_nesterov=True
        ),
        "rmsprop": lambda: tf1.train.RMSPropOptimizer(
            learning_rate, _RMSPROP_DECAY, rule.momentum, _RMSPROP_EPSILON
        ),
        "adam": lambda: tf1.train.AdamOptimizer(learning_rate, beta1=rule.momentum),
        "adamw": lambda: AdamW(learning_rate, **_decoupled(config)),
        "lars": lambda: Lars(learning_rate, rule.trust_coefficient, **_decoupled(config)),
        "lamb": lambda: Lamb(learning_rate, **_decoupled(config)),
    }
    return create[rule.optimizer]()


def _decoupled(config: Config) -> dict[str, Any]:
    return {
        "momentum": config.optimizer.momentum,
        "weight_decay": config.model.weight_decay,
        "decays": lambda variable: losses.is_decayed(config.model, variable),
    }


class UpdateRule:
    """The update of all variables: clipping, then the optimizer, or two where the head has its own.

    The head is the layer `logits`, whose learning rate is --head_learning_rate_multiplier times
    that of the others.
    """

    def __init__(self, config: Config, learning_rate: tf.Tensor) -> None:
        """Creates the rule.

        Args:
          config: update rule, its arguments, the head's multiplier and the largest norm.
          learning_rate: float32 [].
        """
        self._largest_norm = config.optimizer.clip_global_norm
        self._optimizer = create_optimizer(config, learning_rate)
        multiplier = config.fine_tuning.head_learning_rate_multiplier
        self._of_head = None
        if multiplier != 1:
            with tf.name_scope(scopes.UPDATE):
                of_head = multiplier * learning_rate
            self._of_head = create_optimizer(config, of_head)

    def build_update(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        norm: tf.Tensor,
        is_finite: tf.Tensor,
    ) -> tf.Operation:
        """Adds the update; it is none where something is not finite.

        Args:
          gradients: averaged gradients.
          variables: their variables.
          norm: float32 []: the L2 norm of all gradients.
          is_finite: bool []: whether loss and gradients are finite.
        """
        update = tf.cond(
            is_finite, lambda: self._apply(gradients, variables, norm), tf.no_op, "update"
        )
        used = [each for each in (self._optimizer, self._of_head) if each is not None]
        own = _boxes_of(variable for each in used for variable in each.variables())
        scopes.show_in_update(sorted(own - _boxes_of(variables)))
        return update

    def _apply(
        self, gradients: Sequence[tf.Tensor], variables: Sequence[tf.Variable], norm: tf.Tensor
    ) -> tf.Operation:
        if self._largest_norm is not None:
            factor = self._largest_norm / tf.maximum(norm, self._largest_norm)
            gradients = [gradient * factor for gradient in gradients]
        pairs = list(zip(gradients, variables, strict=True))
        if self._of_head is None:
            return self._optimizer.apply_gradients(pairs)
        heads = [models.is_of_head(variable.op.name) for variable in variables]
        if not any(heads):
            raise ConfigError(
                "--head_learning_rate_multiplier: must be given with a network that trains a layer "
                "`logits`, and this one does not"
            )
        parts = [
            (optimizer, [pair for pair, is_head in zip(pairs, heads, strict=True) if is_head is on])
            for optimizer, on in ((self._optimizer, False), (self._of_head, True))
        ]
        return tf.group(*(optimizer.apply_gradients(part) for optimizer, part in parts if part))


def _boxes_of(variables: Iterable[tf.Variable]) -> set[str]:
    """Returns the first parts of the names of variables."""
    return {variable.op.name.partition("/")[0] for variable in variables}
