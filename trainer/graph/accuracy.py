"""Correctness of a network's predictions, by one rule in training, evaluation and prediction.

Classes are ordered by their logits, the highest first, and where logits are equal by their numbers:
so a class has one place, and a network whose logits are all equal is right about one class alone.
In low precision ties are frequent.
"""

import tensorflow as tf

# How many of the first classes a prediction names, and the top-5 looks at.
BEST = 5


def predict(logits: tf.Tensor) -> tf.Tensor:
    """Returns the first class of each example: int64 [batch].

    Args:
      logits: float32 [batch, num_classes]; see `have_order`.
    """
    return tf.argmax(logits, axis=1)  # Of equal ones the first.


def have_order(logits: tf.Tensor) -> tf.Tensor:
    """Returns whether each example's classes have an order: bool [batch].

    They have none where a logit is not a number.
    """
    return ~tf.reduce_any(tf.math.is_nan(logits), axis=1)


def find_places(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the place of each example's label in the order of its classes, from 0 on.

    Args:
      logits: float32 [batch, num_classes].
      labels: int32 [batch], each below num_classes.

    Returns:
      int32 [batch]; num_classes, a place that no class has, where classes have no order.
    """
    num_classes = logits.shape[-1]
    own = tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
    is_equal_before = tf.equal(logits, own) & (tf.range(num_classes) < labels[:, None])
    places = tf.math.count_nonzero((logits > own) | is_equal_before, axis=1, dtype=tf.int32)
    return tf.where(have_order(logits), places, num_classes)


def are_right(logits: tf.Tensor, labels: tf.Tensor, among: int = 1) -> tf.Tensor:
    """Returns 1 for each example whose label is among the first `among` classes: float32 [batch].

    Args:
      logits, labels: see `find_places`.
      among: number of classes; 1: the class that is predicted.
    """
    # A place that no class has is behind them all.
    wanted = min(among, logits.shape[-1])
    return tf.cast(find_places(logits, labels) < wanted, tf.float32)
