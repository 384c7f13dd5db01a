"""The gradients that replace TensorFlow's own on CPUs, against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.step import cpu_gradients

CASES = {
    "1 x 1": {"maps": 7, "size": 1, "strides": 1, "padding": "SAME"},
    "1 x 1, valid": {"maps": 7, "size": 1, "strides": 1, "padding": "VALID"},
    "3 x 3": {"maps": 7, "size": 3, "strides": 1, "padding": "SAME"},
    "5 x 5 on 4 x 4": {"maps": 4, "size": 5, "strides": 1, "padding": "SAME"},
    "on 1 x 1": {"maps": 1, "size": 3, "strides": 1, "padding": "SAME"},
    "3 x 3, valid": {"maps": 7, "size": 3, "strides": 1, "padding": "VALID"},
    "strided": {"maps": 7, "size": 3, "strides": 2, "padding": "SAME"},
    "dilated": {"maps": 7, "size": 3, "strides": 1, "padding": "SAME", "dilations": 2},
    "even": {"maps": 7, "size": 2, "strides": 1, "padding": "SAME"},
    "explicit": {"maps": 7, "size": 3, "strides": 1, "padding": [[0, 0], [1, 1], [1, 1], [0, 0]]},
    "large maps": {"maps": 8, "size": 3, "strides": 1, "padding": "SAME"},
}


def gradients_of(dtype, *, maps, size, **settings):
    """Gradients by inputs, filters and bias, and by outputs, as float32; the operations' types."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        # Whole numbers, of which bfloat16 holds those up to 256: every sum is exact.
        return tf.constant(rng.integers(-2, 3, shape), dtype)

    with tf.Graph().as_default() as of_case:
        values = draw(2, maps, maps, 3), draw(size, size, 3, 5), draw(5)
        with cpu_gradients.faster_gradients(dtype):
            outputs = tf.nn.bias_add(tf.nn.conv2d(values[0], values[1], **settings), values[2])
        weights = draw(*outputs.shape)
        gradients = [*tf.gradients(outputs, values, weights), weights]
        kinds = [operation.type for operation in of_case.get_operations()]
        with tf1.Session() as session:
            return [value.astype(np.float32) for value in session.run(gradients)], kinds


@pytest.mark.parametrize("name", CASES)
def test_they_equal_tensorflows_own(name):
    expected, _ = gradients_of(tf.float32, **CASES[name])
    ours, _ = gradients_of(tf.bfloat16, **CASES[name])
    for one, other in zip(ours[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-8)
    # An image's share of the bias gradient is rounded before the images are summed.
    of_images = np.abs(expected[3].sum((1, 2)))
    assert (np.abs(ours[2] - expected[2]) <= 2**-8 * (of_images.sum(0) + np.abs(expected[2]))).all()


@pytest.mark.parametrize("name", CASES)
def test_they_are_used_where_they_pay(name):
    is_used = name in ("1 x 1", "1 x 1, valid", "3 x 3", "5 x 5 on 4 x 4", "on 1 x 1")
    _, kinds = gradients_of(tf.bfloat16, **CASES[name])
    assert ("Conv2DBackpropFilter" not in kinds) == is_used
    _, kinds = gradients_of(tf.float32, **CASES[name])
    assert "Conv2DBackpropFilter" in kinds
    assert "BiasAddGrad" in kinds


@pytest.mark.parametrize(
    ("shape", "data_format"),
    [([3, 4], "NHWC"), ([2, None, None, 4], "NHWC"), ([2, 4, 5, 3], "NCHW")],
)
def test_bias_gradients_of_other_shapes(shape, data_format):
    with tf.Graph().as_default(), cpu_gradients.faster_gradients(tf.bfloat16):
        inputs = tf1.placeholder(tf.bfloat16, shape)
        bias = tf.zeros([4], tf.bfloat16)
        outputs = tf.nn.bias_add(inputs, bias, data_format)
        gradient = tf.gradients(outputs, bias)[0]
        with tf1.Session() as session:
            values = np.zeros([size or 6 for size in shape])
            found = session.run(gradient, {inputs: values})
    np.testing.assert_array_equal(found.astype(np.float32), [values.size / 4] * 4)
