"""Dynamic loss scaling for float16, whose smallest number is 6e-8 (arXiv:1710.03740).

The loss is multiplied by the scale, so that small gradients don't become 0, and the averaged
gradients are divided by it. Where one overflows, the update is skipped and the scale is halved;
after `GROWTH_STEPS` good updates in a row it is doubled. All workers see the same averaged
gradients, so all have the same scale.
"""

import tensorflow as tf
import tensorflow.compat.v1 as tf1

INITIAL_SCALE = 2.0**15
GROWTH_STEPS = 2000
_MAXIMUM_SCALE = 2.0**24
_SCOPE = "loss_scale/"


class LossScale:
    """The loss scale, as variables that every checkpoint has, whatever the precision.

    Attributes:
      is_used: whether the precision needs it.
      value: float32 []: scale of this step; 1 where it is not used.
    """

    def __init__(self, precision: str) -> None:
        """Adds the variables to the default graph."""
        with tf1.variable_scope("loss_scale"):
            self._scale = tf1.get_variable(
                "scale", [], tf.float32, tf1.constant_initializer(INITIAL_SCALE), trainable=False
            )
            self._good_steps = tf1.get_variable(
                "good_steps", [], tf.int32, tf1.zeros_initializer(), trainable=False
            )
        self.is_used = precision == "float16"
        with tf.name_scope(_SCOPE):
            self.value = tf.identity(self._scale.read_value()) if self.is_used else tf.constant(1.0)

    def multiply(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the scaled loss, whose gradients are computed: float32 []."""
        with tf.name_scope(_SCOPE):
            return loss * self.value if self.is_used else loss

    def divide(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the gradient of the loss, from a float32 gradient of the scaled loss."""
        with tf.name_scope(_SCOPE):
            return gradient / self.value if self.is_used else gradient

    def build_update(self, is_finite: tf.Tensor) -> tf.Operation:
        """Adds what halves or doubles the scale; `is_finite`: bool [], the same on all workers."""
        if not self.is_used:
            return tf.no_op()
        counted = self._good_steps.read_value() + 1
        is_due = tf.logical_and(is_finite, counted >= GROWTH_STEPS)
        factor = tf.where(is_finite, tf.where(is_due, 2.0, 1.0), 0.5)
        scale = tf.clip_by_value(self.value * factor, 1.0, _MAXIMUM_SCALE)
        steps = tf.where(tf.logical_or(is_due, tf.logical_not(is_finite)), 0, counted)
        return tf.group(
            self._scale.assign(scale, read_value=False),
            self._good_steps.assign(steps, read_value=False),
        )
