"""Sums of bfloat16 and float16 on CPUs: their type, and whether a CPU has instructions for them."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.cpu_kernels import gradients, library, switch
from trainer.graph.precision import describe_slowness
from trainer.machine import session

# The compiled operations take maps of 32 channels; they leave others, and float16, to TensorFlow.
CASES = pytest.mark.parametrize(
    ("precision", "kernels", "channels"),
    list(itertools.product(["bfloat16", "float16"], ["0", "1"], [8, 32])),
)


def fed(value):
    """A tensor that is not a constant: those TensorFlow computes with by Eigen before the run."""
    return tf1.placeholder_with_default(value, value.shape)


def compute_gradient(monkeypatch, kernels, build, by_result):
    """The gradient by a layer's parameter, which `build` returns beside its result, as float64."""
    if kernels == "0" or switch.read().library is None:
        monkeypatch.setenv(switch.VARIABLE, kernels)
    with tf.Graph().as_default(), gradients.overridden():
        parameter, result = build()
        gradient = tf.gradients(result, parameter, fed(by_result))[0]
        assert gradient.dtype == parameter.dtype
        with tf1.Session(config=session.create_config()) as run:
            return run.run(gradient).astype(np.float64)


def rounding_of(dtype):
    """The rounding error of one number, relative."""
    return 2**-11 if dtype == tf.float16 else 2**-8


@CASES
def test_bias_gradients_of_low_precision_are_sums_of_float32(
    monkeypatch, precision, kernels, channels
):
    """3,000 ones, which numbers of low precision do not reach by adding 1; and what is rounded."""
    dtype = tf.as_dtype(precision)
    rows = np.random.default_rng(5).normal(1, 1, (3000, channels)).astype(dtype.as_numpy_dtype)
    rows[:, 0] = 1

    def build():
        bias = tf.zeros([channels], dtype)
        return bias, tf.nn.bias_add(tf.zeros([3000, channels], dtype), bias)

    found = compute_gradient(monkeypatch, kernels, build, rows)
    expected = rows.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1.01 * rounding_of(dtype))


@CASES
def test_gradients_by_filters_of_low_precision_are_sums_of_float32(
    monkeypatch, precision, kernels, channels
):
    """3,600 positions of ones, and of numbers whose sums low precision would round all the time."""
    dtype = tf.as_dtype(precision)
    rng = np.random.default_rng(7)
    inputs, by_result = rng.uniform(0, 1, (2, 4, 30, 30, channels)).astype(dtype.as_numpy_dtype)
    inputs[..., 0] = by_result[..., 0] = 1

    def build():
        filters = tf.zeros([1, 1, channels, channels], dtype)
        return filters, tf.nn.conv2d(fed(inputs), filters, 1, "SAME")

    found = compute_gradient(monkeypatch, kernels, build, by_result)[0, 0]
    expected = np.einsum("nhwi,nhwo->io", inputs.astype(np.float64), by_result.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1.01 * rounding_of(dtype))


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
    lines = describe_slowness(precision, set(flags.split()))
    assert len(lines) == is_said
    assert all(line.startswith(f"--precision={precision}: this CPU has no ") for line in lines)


def test_sums_are_known_to_be_of_float32_only_where_onednn_has_the_type(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    of_cpu = {"sse2", "avx512f"}
    monkeypatch.setattr(library, "cpu_flags", lambda: of_cpu)
    types = (tf.float32, tf.bfloat16, tf.float16)
    assert [library.sums_in_float32(dtype) for dtype in types] == [True, True, False]
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert [library.sums_in_float32(dtype) for dtype in types] == [True, False, False]
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    of_cpu = {"asimd", "bf16"}  # Not an x86 CPU.
    assert [library.sums_in_float32(dtype) for dtype in types] == [True, False, False]
