"""What bfloat16 and float16 are summed in on CPUs, and whether a CPU has instructions for them."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.cpu_kernels import gradients, switch
from trainer.graph.precision import describe_slowness


@pytest.mark.parametrize("kernels", ["0", "1"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_bias_gradients_of_low_precision_are_sums_of_float32(monkeypatch, precision, kernels):
    """3,000 ones, which numbers of low precision do not reach by adding 1; and what is rounded."""
    monkeypatch.setenv(switch.VARIABLE, kernels)
    dtype = tf.as_dtype(precision)
    rows = np.random.default_rng(5).normal(1, 1, (3000, 8)).astype(dtype.as_numpy_dtype)
    rows[:, 0] = 1
    expected = rows.astype(np.float64).sum(axis=0)
    with tf.Graph().as_default(), gradients.overridden():
        bias = tf.zeros([8], dtype)
        outputs = tf.nn.bias_add(tf.zeros([3000, 8], dtype), bias)
        gradient = tf.gradients(outputs, bias, tf.constant(rows))[0]
        assert gradient.dtype == dtype
        with tf1.Session() as session:
            found = session.run(gradient).astype(np.float64)
    rounding = np.finfo(np.float16).eps if dtype == tf.float16 else 2**-8
    np.testing.assert_allclose(found, expected, rtol=rounding)


@pytest.mark.parametrize("kernels", ["0", "1"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_gradients_by_filters_of_low_precision_are_sums_of_float32(monkeypatch, precision, kernels):
    """3,600 positions of ones, and of small whole numbers, whose sums are exact in float32."""
    monkeypatch.setenv(switch.VARIABLE, kernels)
    dtype = tf.as_dtype(precision)
    rng = np.random.default_rng(7)
    inputs, gradient = (rng.integers(0, 3, (4, 30, 30, 8)) for _ in range(2))
    inputs[..., 0] = gradient[..., 0] = 1
    expected = np.einsum("nhwi,nhwo->io", inputs, gradient)
    with tf.Graph().as_default(), gradients.overridden():
        filters = tf.zeros([1, 1, 8, 8], dtype)
        outputs = tf.nn.conv2d(tf.constant(inputs, dtype), filters, 1, "SAME")
        by_filters = tf.gradients(outputs, filters, tf.constant(gradient, dtype))[0]
        assert by_filters.dtype == dtype
        with tf1.Session() as session:
            found = session.run(by_filters)[0, 0].astype(np.float64)
    rounding = np.finfo(np.float16).eps if dtype == tf.float16 else 2**-8
    np.testing.assert_allclose(found, expected, rtol=rounding)


@pytest.mark.parametrize(
    ("precision", "flags", "is_said"),
    [
        ("bfloat16", "fpu sse2 avx2", True),
        ("bfloat16", "fpu sse2 avx512f", False),
        ("float16", "fpu sse2 avx512f avx512_bf16", True),
        ("float16", "fpu sse2 avx512_fp16", False),
        ("float32", "fpu sse2", False),
        ("bfloat16", "fp asimd bf16", False),  # Not an x86 CPU.
        ("bfloat16", "", False),
    ],
)
def test_a_precision_that_the_cpu_has_no_instructions_for_is_told(precision, flags, is_said):
    lines = describe_slowness(precision, flags.split())
    assert len(lines) == is_said
    assert all(line.startswith(f"--precision={precision}: this CPU has no ") for line in lines)
