"""The gradients that replace TensorFlow's own on CPUs, against TensorFlow's own and numpy."""

import contextlib
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels, skip_without_onednn

from models import resnet_utils, resnet_v2
from models.slim_compat import slim
from trainer.cpu_kernels import gradients as cpu_gradients
from trainer.cpu_kernels import library as cpu_kernels
from trainer.graph import flops

DTYPES = [tf.float32, tf.bfloat16]
EPSILON = 1e-3  # Of BN.
ROUNDING = {tf.float32: 0, tf.bfloat16: 2**-8}
# Of what is computed from tiles, beside the largest value.
TILES_ROUNDING = 2e-5

CASES = {
    "1 x 1": {"maps": (2, 7, 7), "size": 1},
    "1 x 1, valid": {"maps": (2, 7, 7), "size": 1, "padding": "VALID"},
    "1 x 1, strided": {"maps": (2, 7, 6), "size": 1, "strides": 2},
    "3 x 3": {"maps": (2, 7, 7), "size": 3},
    "one image": {"maps": (1, 5, 6), "size": 3},
    "images without a pair": {"maps": (7, 14, 14), "size": 3},
    "more rows than a band has": {"maps": (3, 40, 23), "size": 3},
    # 320 and 321 of them in float32: 5 blocks as large as possible, or 6 smaller ones.
    "tasks of tiles that differ": {"maps": (641, 4, 4), "size": 3, "channels": (64, 64)},
    "rows of more pixels than a band has": {"maps": (2, 3, 800), "size": 3},
    "5 x 5 on 4 x 4": {"maps": (2, 4, 4), "size": 5},
    "on 1 x 1": {"maps": (2, 1, 1), "size": 3},
    "valid": {"maps": (2, 7, 8), "size": 3, "padding": "VALID"},
    "strided": {"maps": (2, 7, 8), "size": 3, "strides": 2},
    "strided, valid, as in conv2d_same": {
        "maps": (3, 58, 58), "size": 3, "strides": 2, "padding": "VALID"
    },
    "even": {"maps": (2, 7, 7), "size": 2},
    "a band of padding": {
        "maps": (2, 3, 500), "size": 3, "padding": [[0, 0], [5, 4], [1, 1], [0, 0]]
    },
    "explicit": {"maps": (2, 7, 7), "size": 3, "padding": [[0, 0], [2, 1], [0, 3], [0, 0]]},
    "many inputs": {"maps": (2, 3, 3), "size": 1, "channels": (160, 32)},
    "many outputs": {"maps": (2, 3, 3), "size": 3, "channels": (32, 160)},
}  # fmt: skip
FOREIGN = {
    "few channels": {"maps": (2, 7, 7), "size": 3, "channels": (3, 32)},
    "odd channels": {"maps": (2, 7, 7), "size": 3, "channels": (32, 40)},
    "dilated": {"maps": (2, 7, 7), "size": 3, "dilations": 2},
    "groups": {"maps": (2, 7, 7), "size": 3, "groups": 2},
    "strides that differ": {"maps": (2, 7, 7), "size": 3, "strides": [1, 2]},
}


def with_or_without(faster):
    return cpu_gradients.overridden() if faster else contextlib.nullcontext()


def convolution_gradients(dtype, *, threads=2, faster=True, **case):
    """Gradients by inputs, filters and bias, as float32; and the graph."""
    case = {"channels": (32, 64), "strides": 1, "padding": "SAME"} | case
    maps, size, (ins, outs) = case.pop("maps"), case.pop("size"), case.pop("channels")
    groups = case.pop("groups", 1)
    rng = np.random.default_rng(0)

    def draw(*shape):
        # Whole numbers, of which bfloat16 holds those up to 256: every sum of a test is exact, but
        # for its rounding in the end.
        return tf.constant(rng.integers(-2, 3, shape), dtype)

    with tf.Graph().as_default() as of_case:
        values = draw(*maps, ins * groups), draw(size, size, ins, outs), draw(outs)
        with with_or_without(faster):
            outputs = tf.nn.bias_add(tf.nn.conv2d(*values[:2], **case), values[2])
        gradients = tf.gradients(outputs, values, draw(*outputs.shape))
        config = tf1.ConfigProto(intra_op_parallelism_threads=threads)
        with tf1.Session(config=config) as session:
            found = [value.astype(np.float32) for value in session.run(gradients)]
            of_case.threads_of_process = len(os.listdir("/proc/self/task"))
    return found, of_case


def check(ours, expected, dtype):
    for one, other in zip(ours, expected, strict=True):
        is_of_filter = other.shape[:2] == (3, 3)  # From tiles, where there are many pixels.
        bound = TILES_ROUNDING * np.abs(other).max() * is_of_filter
        np.testing.assert_allclose(one, other, rtol=ROUNDING[dtype], atol=bound)


def kinds_of(graph):
    return [operation.type for operation in graph.get_operations()]


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", CASES | FOREIGN)
def test_gradients_of_convolutions_equal_tensorflows_own(name, dtype):
    if name in ("dilated", "groups"):
        skip_without_onednn(dtype)
    case = (CASES | FOREIGN)[name]
    expected, _ = convolution_gradients(tf.float32, faster=False, **case)
    ours, graph = convolution_gradients(dtype, **case)
    check(ours, expected, dtype)
    is_ours = name in CASES
    assert ("SlimHorovodFilterGradient" in kinds_of(graph)) == is_ours
    assert ("Conv2DBackpropFilter" in kinds_of(graph)) != is_ours


def check_threads():
    """Runs where every session has threads of its own: see test_cpu_threads."""
    for case in (
        {"maps": (5, 40, 40), "size": 3},  # Threads share bands, or bands and channels.
        {"maps": (5, 40, 40), "size": 1, "channels": (96, 32)},
        {"maps": (3, 4, 4), "size": 3, "channels": (32, 96)},  # Threads share channels.
        {"maps": (3, 4, 4), "size": 3, "channels": (96, 32)},
    ):
        expected, _ = convolution_gradients(tf.float32, faster=False, **case)
        there = {}
        for threads in (1, 3, 8):
            for dtype in DTYPES:
                ours, graph = convolution_gradients(dtype, threads=threads, **case)
                assert "SlimHorovodFilterGradient" in kinds_of(graph)
                check(ours, expected, dtype)
                there[threads] = graph.threads_of_process
        assert there[8] >= there[1] + 7  # Each session has had its own.


@needs_kernels
def test_the_work_is_counted_as_tensorflows_own():
    graphs = [
        convolution_gradients(tf.bfloat16, faster=faster, **CASES["strided"])[1]
        for faster in (True, False)
    ]
    ours, expected = (flops.count_flops(graph.get_operations()) for graph in graphs)
    assert ours == expected > 0


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "data_format"),
    [
        ([3, 16], "NHWC"),
        ([129, 32], "NHWC"),
        ([2, None, None, 16], "NHWC"),
        ([2, 56, 56, 48], "NHWC"),
        ([3, 4], "NHWC"),
        ([2, 16, 5, 3], "NCHW"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_gradients_by_biases_equal_numpys_sums(dtype, shape, data_format):
    values = np.random.default_rng(6).integers(-2, 4, [size or 6 for size in shape])
    axis = 1 if data_format == "NCHW" else -1
    expected = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).sum(0)
    with tf.Graph().as_default(), cpu_gradients.overridden():
        bias = tf.zeros([values.shape[axis]], dtype)
        by_outputs = tf1.placeholder(dtype, shape)
        outputs = tf.nn.bias_add(tf.zeros_like(by_outputs), bias, data_format)
        gradient = tf.gradients(outputs, bias, by_outputs)[0]
        with tf1.Session() as session:
            found = session.run(gradient, {by_outputs: values})
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=ROUNDING[dtype])


def draw_norm(rng, channels, shape=(5, 7, 6)):
    """x, gamma, beta and the gradient by the result."""
    return (
        rng.normal(2, 3, (*shape, channels)),
        rng.normal(1, 0.5, channels),
        rng.normal(0, 0.5, channels),
        rng.normal(0, 1, (*shape, channels)),
    )


def norm_gradients(dtype, x, gamma, beta, gradient, *, build=tf.nn.relu, faster=True, **settings):
    """Gradients by x, gamma and beta of `build` of BN, and the operations that they need."""
    with tf.Graph().as_default():
        # Fed, since TensorFlow computes what is constant in another way than the rest.
        images = tf1.placeholder(dtype, x.shape)
        by_outputs = tf1.placeholder(dtype, x.shape)
        inputs = images, *(tf.constant(values, tf.float32) for values in (gamma, beta))
        with with_or_without(faster):
            normalized, _, _ = tf1.nn.fused_batch_norm(*inputs, epsilon=EPSILON, **settings)
            outputs = build(normalized)
        gradients = tf.gradients(outputs, inputs, by_outputs)
        needed = flops.list_needed_operations([gradient.op for gradient in gradients])
        with tf1.Session() as session:
            found = session.run(gradients, {images: x, by_outputs: gradient})
    return [value.astype(np.float64) for value in found], [operation.type for operation in needed]


def expected_norm_gradients(x, gamma, beta, gradient, *, relu):
    """The same by numpy, in float64."""
    axes = (0, 1, 2)
    inverse = 1 / np.sqrt(x.var(axes) + EPSILON)
    normalized = (x - x.mean(axes)) * inverse
    result = normalized * gamma + beta
    passed = np.where(result > 0, gradient, 0) if relu else gradient
    by_gamma, by_beta = (passed * normalized).sum(axes), passed.sum(axes)
    rows = x.size / x.shape[-1]
    by_x = gamma * inverse * (passed - by_beta / rows - normalized * by_gamma / rows)
    return by_x, by_gamma, by_beta


def check_norm(channels, dtype, relu, *shape):
    # Values that both types hold.
    drawn = draw_norm(np.random.default_rng(1), channels, *shape)
    values = [v.astype(dtype.as_numpy_dtype) for v in drawn]
    values = [v.astype(np.float64) for v in values]
    found, kinds = norm_gradients(dtype, *values, build=tf.nn.relu if relu else tf.identity)
    expected = expected_norm_gradients(*values, relu=relu)
    bound = 2**-8 if dtype == tf.bfloat16 else 1e-5
    np.testing.assert_allclose(found[0], expected[0], rtol=bound, atol=bound)
    # TensorFlow's own sums, which 12 channels are left to, take BN's result in bfloat16.
    rows = values[0].size / channels
    atol = 1e-5 * np.sqrt(rows) if channels != 12 else 0.1
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)
    is_ours = channels != 12 and cpu_kernels.find() is not None
    assert ("SlimHorovodNormGradient" in kinds) == is_ours
    assert ("ReluGrad" in kinds) == (relu and not is_ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("channels", [16, 48, 12])
@pytest.mark.parametrize("relu", [True, False])
def test_gradients_of_batch_norm_equal_numpys(channels, dtype, relu):
    check_norm(channels, dtype, relu)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_gradients_of_large_maps_equal_numpys(dtype):
    check_norm(96, dtype, True, (16, 64, 64))  # Stored past the cache.


def check_norms():
    for dtype in DTYPES:
        check_norm(48, dtype, relu=True)


def test_channels_that_are_constant_pass_nothing_through_the_relu():
    # BN's result is 0 there, whatever the mean, and the gradient of ReLU in 0 is 0.
    _, gamma, _, gradient = draw_norm(np.random.default_rng(2), 32, shape=(4, 8, 8))
    x = np.broadcast_to(np.arange(-16, 16) / 8, gradient.shape)  # Of which sums are exact.
    found, _ = norm_gradients(tf.float32, x, gamma, np.zeros(32), gradient)
    for value in found:
        np.testing.assert_array_equal(value, 0)


@pytest.mark.parametrize(
    "build",
    [
        lambda y: tf.nn.relu(y) + 3 * y,
        lambda y: tf.nn.relu(y) + tf.nn.relu(y) * y,
        lambda y: tf.nn.relu(tf.nn.relu(y)),
        lambda y: tf.nn.relu(-y),
        lambda y: tf.gradients(tf.nn.relu(y), y)[0] * y,
    ],
)
def test_whatever_is_made_of_batch_norms_result_has_its_own_gradient(build):
    values = draw_norm(np.random.default_rng(3), 16)
    found, _ = norm_gradients(tf.float32, *values, build=build)
    expected, _ = norm_gradients(tf.float32, *values, build=build, faster=False)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_gradient_by_batch_norms_result_itself_is_right():
    with tf.Graph().as_default(), cpu_gradients.overridden():
        inputs = tf.random.normal([2, 3, 3, 16])
        result, _, _ = tf1.nn.fused_batch_norm(inputs, tf.ones([16]), tf.zeros([16]))
        gradients = tf.gradients(tf.nn.relu(result), [inputs, result])
        with tf1.Session() as session:
            (_, by_result), value = session.run([gradients, result])
    np.testing.assert_array_equal(by_result, value > 0)


def test_gradients_of_frozen_batch_norm_are_tensorflows_own():
    x, gamma, beta, gradient = draw_norm(np.random.default_rng(3), 16)
    mean, variance = np.full(16, 1.5), np.full(16, 4.0)
    found, _ = norm_gradients(
        tf.float32, x, gamma, beta, gradient, mean=mean, variance=variance, is_training=False
    )
    normalized = (x - mean) / np.sqrt(variance + EPSILON)
    passed = np.where(normalized * gamma + beta > 0, gradient, 0)
    expected = passed * gamma / np.sqrt(variance + EPSILON), (passed * normalized).sum((0, 1, 2))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_what_is_not_finite_is_not_lost(dtype):
    x, gamma, beta, gradient = draw_norm(np.random.default_rng(4), 16)
    gradient[2, 3, 4, 5] = np.nan
    x[2, 3, 4, 5] = 20  # The ReLU lets it through.
    found, _ = norm_gradients(dtype, x, gamma, np.abs(beta), gradient)
    for value in found:
        assert np.isnan(value[..., 5]).any()
        assert np.isfinite(np.delete(value, 5, axis=-1)).all()


@needs_kernels
def test_a_network_has_the_gradients_that_it_has_without():
    rng = np.random.default_rng(5)
    images = rng.normal(size=(4, 33, 33, 3)).astype(np.float32)

    def gradients_of(*, faster):
        with tf.Graph().as_default():
            tf1.set_random_seed(1)
            blocks = [
                resnet_v2.resnet_v2_block("block1", base_depth=32, num_units=2, stride=2),
                resnet_v2.resnet_v2_block("block2", base_depth=32, num_units=1, stride=1),
            ]
            with slim.arg_scope(resnet_utils.resnet_arg_scope()), with_or_without(faster):
                logits, _ = resnet_v2.resnet_v2(images, blocks, num_classes=10)
            gradients = tf.gradients(tf.reduce_sum(logits**2), tf1.trainable_variables())
            needed = flops.list_needed_operations([gradient.op for gradient in gradients])
            with tf1.Session() as session:
                session.run(tf1.global_variables_initializer())
                return session.run(gradients), [operation.type for operation in needed]

    ours, kinds = gradients_of(faster=True)
    expected, plain_kinds = gradients_of(faster=False)
    # All but the root's, which has 3 channels, and the logits', which has 10.
    assert kinds.count("SlimHorovodFilterGradient") == plain_kinds.count("Conv2D") - 2
    assert kinds.count("SlimHorovodNormGradient") == plain_kinds.count("FusedBatchNormV3")
    assert "ReluGrad" in plain_kinds
    assert "ReluGrad" not in kinds
    largest = max(np.abs(gradient).max() for gradient in expected)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * largest)
