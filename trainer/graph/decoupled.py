"""Update rules that decay weights apart from the gradient: AdamW, LARS and LAMB.

In all of them g is the gradient without weight decay, w a variable, and `decay` its weight decay: 0
for biases and BN's scales and offsets, unless --decay_bn_and_biases. LARS and LAMB scale the steps
of kernels alone; those of biases, scales and offsets are as large as without.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.graph import losses

# Decay of Adam's second moment, arXiv:1412.6980.
_SECOND_DECAY = 0.999


class _Decoupled(tf1.train.Optimizer):  # type: ignore[misc]  # TensorFlow has no types
    """The base of these rules: a learning rate, a momentum, and each variable's decay."""

    def __init__(
        self,
        learning_rate: tf.Tensor,
        *,
        momentum: float,
        weight_decay: float,
        decays: Callable[[tf.Variable], bool],
    ) -> None:
        """Creates the rule.

        Args:
          learning_rate: float32 [].
          momentum: decay of the first moment.
          weight_decay: coefficient of the decay.
          decays: whether a variable is decayed at all.
        """
        super().__init__(use_locking=False, name=type(self).__name__)
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._decays = decays

    def _decay_of(self, variable: tf.Variable) -> float:
        return self._weight_decay if self._decays(variable) else 0.0

    def _apply_dense(self, gradient: tf.Tensor, variable: tf.Variable) -> tf.Operation:
        return self._resource_apply_dense(gradient, variable)


class Lars(_Decoupled):
    """Layer-wise adaptive rate scaling (arXiv:1708.03888, algorithm 1).

    v <- momentum * v + rate * ratio * (g + decay * w), w <- w - v, with
    ratio = trust_coefficient * |w| / (|g| + decay * |w|); 1 where |w| or |g| is 0.
    """

    def __init__(self, learning_rate: tf.Tensor, trust_coefficient: float, **others: Any) -> None:
        super().__init__(learning_rate, **others)
        self._trust_coefficient = trust_coefficient

    def _create_slots(self, variables: Sequence[tf.Variable]) -> None:
        for variable in variables:
            self._zeros_slot(variable, "velocity", self._name)

    def _resource_apply_dense(self, gradient: tf.Tensor, variable: tf.Variable) -> tf.Operation:
        weights, velocity = variable.read_value(), self.get_slot(variable, "velocity")
        decay = self._decay_of(variable)
        rate = self._learning_rate
        if losses.is_kernel(variable):
            size, slope = tf.norm(weights), tf.norm(gradient)
            rate *= _ratio(self._trust_coefficient * size, slope + decay * size, size * slope)
        step = self._momentum * velocity.read_value() + rate * (gradient + decay * weights)
        return tf.group(
            velocity.assign(step, read_value=False),
            variable.assign(weights - step, read_value=False),
        )


class AdamW(_Decoupled):
    """Adam with decoupled weight decay (arXiv:1711.05101, algorithm 2).

    w <- w - rate * (m / (sqrt(v) + epsilon) + decay * w), where m and v are the means of g and of
    g^2, corrected for their start (arXiv:1412.6980).
    """

    _epsilon = 1e-8

    def _create_slots(self, variables: Sequence[tf.Variable]) -> None:
        first = min(variables, key=lambda variable: variable.name)
        self._updates = self._create_non_slot_variable(0.0, f"{self._name}/updates", first)
        for variable in variables:
            self._zeros_slot(variable, "mean", self._name)
            self._zeros_slot(variable, "mean_square", self._name)

    def _prepare(self) -> None:
        number = self._updates.read_value() + 1.0
        self._corrections = [1 - tf.pow(d, number) for d in (self._momentum, _SECOND_DECAY)]

    def _resource_apply_dense(self, gradient: tf.Tensor, variable: tf.Variable) -> tf.Operation:
        weights = variable.read_value()
        moments = [self.get_slot(variable, name) for name in ("mean", "mean_square")]
        mean, square = (
            decay * moment.read_value() + (1 - decay) * new
            for moment, decay, new in zip(
                moments,
                (self._momentum, _SECOND_DECAY),
                (gradient, tf.square(gradient)),
                strict=True,
            )
        )
        first, second = self._corrections
        direction = (mean / first) / (tf.sqrt(square / second) + self._epsilon)
        direction += self._decay_of(variable) * weights
        step = self._rate_of(variable, weights, direction) * direction
        return tf.group(
            moments[0].assign(mean, read_value=False),
            moments[1].assign(square, read_value=False),
            variable.assign(weights - step, read_value=False),
        )

    def _rate_of(
        self, variable: tf.Variable, weights: tf.Tensor, direction: tf.Tensor
    ) -> tf.Tensor:
        """Returns the factor of a variable's direction: float32 []."""
        del variable, weights, direction
        return self._learning_rate

    def _finish(self, update_ops: Sequence[tf.Operation], name_scope: str) -> tf.Operation:
        with tf.control_dependencies([*update_ops]):
            return tf.group(
                *update_ops, self._updates.assign_add(1.0, read_value=False), name=name_scope
            )


class Lamb(AdamW):
    """Layer-wise adaptive moments for large batches (arXiv:1904.00962, algorithm 2).

    AdamW's direction times |w| / |direction|, which is 1 where either is 0; epsilon is 1e-6.
    """

    _epsilon = 1e-6

    def _rate_of(
        self, variable: tf.Variable, weights: tf.Tensor, direction: tf.Tensor
    ) -> tf.Tensor:
        if not losses.is_kernel(variable):
            return self._learning_rate
        size, length = tf.norm(weights), tf.norm(direction)
        return self._learning_rate * _ratio(size, length, size * length)


def _ratio(numerator: tf.Tensor, denominator: tf.Tensor, condition: tf.Tensor) -> tf.Tensor:
    """Returns the quotient, or 1 where `condition` is 0; all float32 []."""
    return tf.where(condition > 0, tf.math.divide_no_nan(numerator, denominator), 1.0)
