"""Convolutions by the project's own operation on CPUs, against their definition in float64."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels, skip_without_onednn

from trainer.cpu_kernels import gradients as cpu_gradients
from trainer.machine import cores, session

DTYPES = [tf.float32, tf.bfloat16]
EPSILON = 1e-3  # Of BN.
OURS = "SlimHorovodConvolution"

CASES = {
    "1 x 1": {"maps": (5, 9, 11), "size": 1},
    "1 x 1, many inputs": {"maps": (2, 16, 16), "size": 1, "channels": (160, 32)},
    "1 x 1, many outputs": {"maps": (1, 16, 17), "size": 1, "channels": (32, 160)},
    "1 x 1, past the cache": {"maps": (9, 60, 61), "size": 1, "channels": (32, 128)},
    "3 x 3": {"maps": (5, 9, 11), "size": 3},
    "3 x 3, whole tiles": {"maps": (3, 12, 16), "size": 3},
    "3 x 3, many inputs": {"maps": (2, 16, 16), "size": 3, "channels": (160, 32)},
    "3 x 3, many outputs": {"maps": (2, 13, 14), "size": 3, "channels": (32, 160)},
    "3 x 3, past the cache": {"maps": (9, 60, 61), "size": 3, "channels": (32, 128)},
    # 2 tasks of 96 and 97 tiles, in float32 and in bfloat16.
    "3 x 3, tasks that differ": {"maps": (193, 4, 4), "size": 3},
    "3 x 3, tasks that differ, of small tiles": {"maps": (193, 2, 2), "size": 3},
    "valid": {"maps": (4, 11, 13), "size": 3, "padding": "VALID"},
    "explicit": {"maps": (4, 9, 9), "size": 3, "padding": [[0, 0], [2, 1], [0, 2], [0, 0]]},
    "a row": {"maps": (1, 1, 400), "size": 3},
    "a column": {"maps": (2, 400, 1), "size": 3},
}
FOREIGN = {
    "few pixels": {"maps": (1, 7, 7), "size": 3},
    "odd channels": {"maps": (5, 9, 11), "size": 3, "channels": (32, 40)},
    "few channels": {"maps": (5, 9, 11), "size": 1, "channels": (3, 32)},
    "5 x 5": {"maps": (5, 9, 11), "size": 5},
    "1 x 3": {"maps": (5, 9, 11), "size": (1, 3)},
    "1 x 1, padded": {"maps": (5, 9, 11), "size": 1, "padding": [[0, 0], [1, 1], [1, 1], [0, 0]]},
    "strided": {"maps": (5, 19, 21), "size": 3, "strides": 2},
}


def slow_if_large(*names):
    """Parameters of a test: the large cases take some seconds."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if "past the cache" in name else name
        for name in names
    ]


@functools.lru_cache(maxsize=1)  # For tests, one after the other, that leave it as it is.
def shared(name, dtype):
    return Convolution(dtype, **CASES[name])


class Convolution:
    """A case: its values, which `dtype` holds, as float64, and what is right for them."""

    def __init__(self, dtype, *, maps, size, channels=(32, 64), **settings):
        height, width = (size, size) if isinstance(size, int) else size
        rng = np.random.default_rng(0)

        def draw(*shape):
            return rng.normal(size=shape).astype(dtype.as_numpy_dtype).astype(np.float64)

        self.dtype = dtype
        self.settings = {"strides": 1, "padding": "SAME", **settings}
        self.inputs = draw(*maps, channels[0])
        self.filters = draw(height, width, *channels)
        self.bias = draw(channels[1])
        with tf.Graph().as_default(), tf1.Session() as plain:
            inputs, filters = tf.constant(self.inputs), tf.constant(self.filters)
            outputs = tf.nn.conv2d(inputs, filters, **self.settings)
            self.gradient, self.addend = draw(*outputs.shape), draw(*outputs.shape)
            by_inputs = tf.gradients(outputs, inputs, tf.constant(self.gradient))
            self.outputs, self.by_inputs = plain.run([outputs, *by_inputs])

    def run(self, build=lambda outputs, bias, addend: outputs, *, known=True, differentiates=True):
        """`build`'s, and the gradient by the inputs, if wanted, as float64; operations' kinds."""
        values = (self.inputs, self.filters, self.bias, self.addend, self.gradient)
        with tf.Graph().as_default():
            # Fed, since TensorFlow computes what is constant before. What is fed has no size that
            # its optimizers would rely on.
            feeds = {tf1.placeholder(self.dtype, [None] * value.ndim): value for value in values}
            inputs, filters, bias, addend, gradient = (
                tf.reshape(fed, value.shape) if known else fed for fed, value in feeds.items()
            )
            with cpu_gradients.overridden():
                outputs = tf.nn.conv2d(inputs, filters, **self.settings)
            # What is fetched is left as it is, without what comes behind.
            results = [tf.identity(build(outputs, bias, addend))]
            if differentiates:
                results.append(tf.identity(tf.gradients(outputs, inputs, gradient)[0]))
            found = [run([result], feeds) for result in results]
        return *(values[0] for values, _ in found), [kind for _, kinds in found for kind in kinds]

    def check(self, found, expected, *, is_rounded_between=False):
        """Rounding errors, by the size of the value or by the rms of all."""
        is_tiled = self.filters.shape[0] == 3 or is_rounded_between
        rms = np.sqrt(np.mean(expected**2))
        error = found - expected
        if self.dtype == tf.float32:
            assert np.sqrt(np.mean(error**2)) < 2e-6 * rms
            np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * rms)
        elif is_tiled:
            assert np.sqrt(np.mean(error**2)) < 6e-3 * rms
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-2 * rms)
        else:
            np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-5 * rms)


def run(fetches, feeds):
    """The values as float64, and the kinds of all operations that ran."""
    with tf1.Session(config=session.create_config()) as our_session:
        metadata = tf1.RunMetadata()
        options = tf1.RunOptions(output_partition_graphs=True)
        found = our_session.run(fetches, feeds, options, metadata)
    kinds = [node.op for graph in metadata.partition_graphs for node in graph.node]
    return [np.asarray(value).astype(np.float64) for value in found], kinds


def norm(outputs, *, relu=True, parameters=None):
    """BN by moving averages: 0.5, 0.6 ...; -0.3; 1.5; 4."""
    channels = outputs.shape[-1]
    if parameters is None:
        parameters = [
            tf1.placeholder_with_default(np.broadcast_to(np.float32(value), channels), [channels])
            for value in (0.5 + 0.1 * np.arange(channels), -0.3, 1.5, 4.0)
        ]
    gamma, beta, mean, variance = parameters
    result, _, _ = tf1.nn.fused_batch_norm(
        outputs, gamma, beta, mean, variance, epsilon=EPSILON, is_training=False
    )
    return tf.nn.relu(result) if relu else result


def expected_norm(outputs, *, relu=True):
    gamma = 0.5 + 0.1 * np.arange(outputs.shape[-1])
    result = (outputs - 1.5) / np.sqrt(4 + EPSILON) * gamma - 0.3
    return np.maximum(result, 0) if relu else result


def count_tensorflows(kinds):
    """The convolutions that are TensorFlow's, and their gradients by the inputs."""
    return sum("Conv2D" in kind and "BackpropFilter" not in kind for kind in kinds)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", slow_if_large(*CASES))
def test_convolutions_and_their_gradients_are_right(name, dtype):
    case = Convolution(dtype, **CASES[name])
    outputs, by_inputs, kinds = case.run()
    case.check(outputs, case.outputs)
    case.check(by_inputs, case.by_inputs)
    assert (kinds.count(OURS), count_tensorflows(kinds)) == (2, 0)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_it_does_not_know_is_tensorflows(name):
    case = Convolution(tf.float32, **FOREIGN[name])
    outputs, by_inputs, kinds = case.run()
    case.check(outputs, case.outputs)
    case.check(by_inputs, case.by_inputs)
    assert (kinds.count(OURS), count_tensorflows(kinds)) == (0, 2)


@needs_kernels
def test_groups_are_tensorflows():
    """The filter has half of the inputs' channels: it is one of two groups."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) for shape in ((2, 20, 20, 64), (3, 3, 32, 64))]

    def differentiate(config):
        with tf.Graph().as_default():
            inputs, filters = (tf.constant(value, tf.float32) for value in values)
            with cpu_gradients.overridden():
                outputs = tf.nn.conv2d(inputs, filters, 1, "SAME")
            gradients = tf.gradients(outputs**2, [inputs, filters])
            with tf1.Session(config=config) as one_session:
                return one_session.run(gradients)

    ours, expected = (differentiate(each) for each in (session.create_config(), tf1.ConfigProto()))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("maps", [(5, 9, 11, 32), (1, 3, 5, 32)])
def test_what_is_fed_can_have_other_sizes(maps):
    with tf.Graph().as_default():
        default = tf.zeros([5, 9, 11, 32])
        inputs = tf1.placeholder_with_default(default, [None, None, None, 32])
        outputs = tf.nn.conv2d(tf.nn.relu(inputs), tf.ones([1, 1, 32, 32]), 1, "SAME")
        (found,), _ = run([tf.identity(outputs)], {inputs: np.ones(maps)})
    np.testing.assert_allclose(found, np.full(maps, 32.0), rtol=1e-6)


def test_what_xla_has_to_compile_is_left_to_it():
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, [None] * 4)

        @tf.function(jit_compile=True)
        def convolve(images):
            images = tf.reshape(images, [2, 20, 20, 32])  # Of a size that is known.
            return tf.nn.conv2d(images, tf.ones([3, 3, 32, 32]), 1, "SAME")

        outputs = convolve(images)
        gradient = tf.gradients(outputs, images, tf.ones_like(outputs))
        (found,), _ = run(gradient, {images: np.ones([2, 20, 20, 32])})
    np.testing.assert_allclose(found[:, 5, 5], np.full([2, 32], 9 * 32.0), rtol=1e-6)


def test_what_is_dilated_is_tensorflows():
    with tf.Graph().as_default():
        inputs = tf1.placeholder(tf.float32, [5, 19, 21, 32])
        outputs = tf.nn.conv2d(inputs, tf.ones([3, 3, 32, 32]), 1, "SAME", dilations=2)
        (found,), kinds = run([tf.identity(outputs)], {inputs: np.ones(inputs.shape)})
    assert OURS not in kinds
    assert found[0, 9, 9, 0] == 9 * 32


BEHIND = {
    "bias": (
        lambda outputs, bias, addend: tf.nn.bias_add(outputs, bias),
        lambda case: case.outputs + case.bias,
    ),
    "bias, ReLU": (
        lambda outputs, bias, addend: tf.nn.relu(tf.nn.bias_add(outputs, bias)),
        lambda case: np.maximum(case.outputs + case.bias, 0),
    ),
    "BN": (
        lambda outputs, bias, addend: norm(outputs, relu=False),
        lambda case: expected_norm(case.outputs, relu=False),
    ),
    "BN, ReLU": (
        lambda outputs, bias, addend: norm(outputs),
        lambda case: expected_norm(case.outputs),
    ),
    "bias, addend": (
        lambda outputs, bias, addend: tf.nn.bias_add(outputs, bias) + addend,
        lambda case: case.outputs + case.bias + case.addend,
    ),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", slow_if_large("1 x 1", "1 x 1, past the cache", "3 x 3"))
def test_what_comes_behind_is_computed_with_it(behind, name, dtype):
    if behind != "BN":
        skip_without_onednn(dtype)  # It fuses these with a convolution.
    case = shared(name, dtype)
    build, expect = BEHIND[behind]
    found, kinds = case.run(build, differentiates=False)
    case.check(found, expect(case))
    # TensorFlow adds what is 3 x 3 and what comes behind in one operation, which ours does not.
    is_ours = (behind, name) != ("bias, addend", "3 x 3")
    assert (kinds.count(OURS), count_tensorflows(kinds)) == ((1, 0) if is_ours else (0, 1))
    assert not {"BiasAdd", "Relu", "SlimHorovodNorm", "AddV2"} & set(kinds)


@needs_kernels
def test_sizes_that_are_not_known_before_are_left_to_tensorflow():
    case = Convolution(tf.float32, **CASES["3 x 3"])
    outputs, by_inputs, kinds = case.run(known=False)
    case.check(outputs, case.outputs)
    case.check(by_inputs, case.by_inputs)
    assert OURS not in kinds


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_what_others_need_of_a_convolution_is_without_bn(dtype):
    case = Convolution(dtype, **CASES["1 x 1"])
    found, _, kinds = case.run(lambda outputs, bias, addend: norm(outputs) + outputs * 0.5)
    expected = expected_norm(case.outputs) + case.outputs * 0.5
    case.check(found, expected, is_rounded_between=True)
    assert OURS in kinds


@needs_kernels
def test_bn_whose_parameters_depend_on_the_convolution_is_behind_it():
    def build(outputs, bias, addend):
        del addend
        beta = tf.cast(bias, tf.float32)
        with tf.control_dependencies([outputs]):  # As if they were computed from it.
            beta = tf.identity(tf.math.sin(beta))
        ones = tf.ones_like(beta)
        return norm(outputs, relu=False, parameters=[ones, beta, ones * 0, ones])

    case = Convolution(tf.bfloat16, **CASES["1 x 1"])
    found, _, kinds = case.run(build)
    expected = case.outputs / np.sqrt(1 + EPSILON) + np.sin(case.bias)
    case.check(found, expected, is_rounded_between=True)
    assert {OURS, "SlimHorovodNorm"} <= set(kinds)


@needs_kernels
@pytest.mark.parametrize("name", ["1 x 1", "3 x 3"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_what_is_fed_in_place_of_a_convolution_is_what_bn_gets(name, dtype):
    case = Convolution(dtype, **CASES[name])
    with tf.Graph().as_default():
        inputs, filters = (
            tf1.placeholder_with_default(value.astype(dtype.as_numpy_dtype), value.shape)
            for value in (case.inputs, case.filters)
        )
        outputs = tf.nn.conv2d(inputs, filters, **case.settings)
        (found,), _ = run([tf.identity(norm(outputs))], {outputs: case.addend})
    expected = expected_norm(case.addend)
    np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", ["1 x 1", "3 x 3"])
def test_what_is_not_a_number_stays_so(name, dtype):
    case = Convolution(dtype, **CASES[name])
    case.inputs[2, 4, 4, 7] = np.nan
    found, _, _ = case.run(lambda outputs, bias, addend: norm(outputs))
    assert np.isnan(found[2, 4, 4]).all()
    assert not np.isnan(found[[0, 1, 3, 4]]).any()


def check_threads():
    """Runs where every session has threads of its own: see test_cpu_threads."""
    cases = [
        Convolution(dtype, **{"channels": channels, **CASES[name]})
        for dtype in DTYPES
        for name in ("1 x 1", "3 x 3", "3 x 3, tasks that differ, of small tiles", "valid")
        for channels in ((32, 96), (96, 32))
    ]
    for threads in (1, 3, 8):
        cores.worker_cores = lambda local_size, threads=threads: threads
        for case in cases:
            outputs, by_inputs, kinds = case.run()
            case.check(outputs, case.outputs)
            case.check(by_inputs, case.by_inputs)
            assert kinds.count(OURS) == 2
