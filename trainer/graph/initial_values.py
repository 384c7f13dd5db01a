"""Zeros that variables begin with, which take memory once.

TensorFlow's graph optimizers compute what depends on constants alone before the first run, and
keep it for as long as the session lives. A `tf.zeros` of up to 10 MiB is such a constant: beside
the slots of an update rule there would be about as many zeros again (docs/experiments.md).
So zeros are made by an operation that TensorFlow takes for one with a state, and leaves alone.
"""

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.graph import scopes


def create_zeros(shape: tf.Tensor | tf.TensorShape, dtype: tf.DType) -> tf.Tensor:
    """Adds zeros of a shape, computed at each run, to the default graph."""
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)


def build_initializer() -> tf.Operation:
    """Adds what sets all global variables to their initial values to the default graph.

    Their own initializers, which it consists of, get the zeros, too.
    """
    variables = tf1.global_variables()
    with tf.name_scope(scopes.START):
        for variable in variables:
            assign = variable.initializer
            value = assign.inputs[1]
            if _is_foldable(value):
                shape, element = value.op.inputs
                assign._update_input(1, create_zeros(shape, value.dtype) + element)
        return tf1.variables_initializer(variables)


def _is_foldable(value: tf.Tensor) -> bool:
    """Returns whether a value is one number in a known shape, as zeros are, or RMSProp's ones."""
    if value.op.type != "Fill" or not (value.dtype.is_floating or value.dtype.is_integer):
        return False
    shape, element = value.op.inputs
    known = tf.get_static_value(shape), tf.get_static_value(element)
    return shape.dtype == tf.int32 and all(each is not None for each in known)
