"""Batch normalization by the project's own operation on CPUs, against numpy in float64."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels, skip_without_onednn

from models import resnet_utils, resnet_v2
from models.slim_compat import slim
from trainer.cpu_kernels import gradients as cpu_gradients
from trainer.cpu_kernels import library
from trainer.machine import cores, session

DTYPES = [tf.float32, tf.bfloat16]
EPSILON = 1e-3
OURS = "SlimHorovodNorm"
MEAN, VARIANCE = 1.5, 4.0  # The moving ones.
LARGE = (16, 64, 64)  # Maps that are stored past the cache.


def build_norm(images, *, build=tf.nn.relu, is_training=True, data_format="NHWC"):
    """`build` of BN with gamma 0.5, 0.6 ... and beta -0.3; in training also -mean, -variance."""
    channels = images.shape[data_format.index("C")]
    # TensorFlow takes BN with constants apart, and the mean and variance that somebody needs of it.
    gamma, beta, mean, variance = (
        tf1.placeholder_with_default(np.broadcast_to(np.float32(value), channels), [channels])
        for value in (0.5 + 0.1 * np.arange(channels), -0.3, MEAN, VARIANCE)
    )
    moving = {} if is_training else {"mean": mean, "variance": variance}
    result, *statistics = tf1.nn.fused_batch_norm(
        images,
        gamma,
        beta,
        **moving,
        epsilon=EPSILON,
        is_training=is_training,
        data_format=data_format,
    )
    # Fetched itself, BN would be left as it is, without the ReLU.
    return build(result), *(-each for each in statistics if is_training)


def run(fetches, feeds):
    """The values as float64, and the kinds of all operations that ran."""
    with tf1.Session(config=session.create_config()) as norm_session:
        metadata = tf1.RunMetadata()
        options = tf1.RunOptions(output_partition_graphs=True)
        found = norm_session.run(fetches, feeds, options, metadata)
    kinds = [node.op for graph in metadata.partition_graphs for node in graph.node]
    return [np.asarray(value).astype(np.float64) for value in found], kinds


def norms(dtype, x, **settings):
    with tf.Graph().as_default():
        # Fed, since TensorFlow computes what is constant in another way than the rest.
        images = tf1.placeholder(dtype, x.shape)
        return run(build_norm(images, **settings), {images: x})


def expected_norms(x, *, relu, is_training=True):
    """Result, mean and variance, which is by Bessel's correction in training."""
    axes, rows = (0, 1, 2), x.size / x.shape[-1]
    mean, variance = (x.mean(axes), x.var(axes)) if is_training else (MEAN, VARIANCE)
    gamma = 0.5 + 0.1 * np.arange(x.shape[-1])
    result = (x - mean) / np.sqrt(variance + EPSILON) * gamma - 0.3
    return (
        np.maximum(result, 0) if relu else result,
        mean,
        variance * rows / (rows - 1) if is_training else variance,
    )


def draw(dtype, shape, seed=0):
    """Values that `dtype` holds, as float64."""
    values = np.random.default_rng(seed).normal(2, 3, shape)
    return values.astype(dtype.as_numpy_dtype).astype(np.float64)


def check_norm(dtype, shape, *, relu=True, is_training=True):
    x = draw(dtype, shape)
    build = tf.nn.relu if relu else tf.identity
    found, kinds = norms(dtype, x, build=build, is_training=is_training)
    expected = expected_norms(x, relu=relu, is_training=is_training)
    bound = 2**-8 if dtype == tf.bfloat16 else 1e-5
    np.testing.assert_allclose(found[0], expected[0], rtol=bound, atol=1e-5)
    if is_training:
        np.testing.assert_allclose(-found[1], expected[1], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(-found[2], expected[2], rtol=2e-6)
    return kinds


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "shape", [(5, 7, 6, 16), (5, 7, 6, 48), (5, 7, 6, 12), (2, 3, 3, 1), (1, 1, 2, 33)]
)
def test_batch_norm_equals_numpys(dtype, shape, relu, is_training):
    kinds = check_norm(dtype, shape, relu=relu, is_training=is_training)
    assert (OURS in kinds) == (library.find() is not None)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "channels", [pytest.param(96, marks=pytest.mark.slow), 72]
)  # Of 72, no whole lines in bfloat16.
def test_large_maps_are_as_right(dtype, channels):
    check_norm(dtype, (*LARGE, channels))
    check_norm(dtype, (*LARGE, channels), relu=False, is_training=False)


@needs_kernels
def test_the_relu_is_computed_with_it():
    skip_without_onednn(tf.bfloat16)  # It fuses the two, which ours replaces.
    for is_training in (True, False):
        kinds = check_norm(tf.bfloat16, (5, 7, 6, 16), is_training=is_training)
        assert "Relu" not in [kind.removeprefix("_MklNative") for kind in kinds]


@needs_kernels
def test_a_mean_that_is_far_from_zero_costs_no_digits():
    x = draw(tf.float32, (8, 32, 32, 16)) / 8 + 1000
    x = x.astype(np.float32).astype(np.float64)
    found, _ = norms(tf.float32, x)
    _, mean, variance = expected_norms(x, relu=True)
    np.testing.assert_allclose(-found[1], mean, rtol=1e-6)
    np.testing.assert_allclose(-found[2], variance, rtol=1e-4)


@needs_kernels
def test_channels_that_are_constant_have_no_variance():
    x = np.broadcast_to(np.arange(16.0), (3, 4, 5, 16))
    found, _ = norms(tf.float32, x, build=tf.identity)
    np.testing.assert_allclose(found[0], np.full(x.shape, -0.3), rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("is_training", [True, False])
def test_what_is_not_a_number_stays_so(dtype, is_training):
    x = draw(dtype, (2, 3, 4, 16))
    x[1, 2, 3, 5] = np.nan
    (result, *statistics), _ = norms(dtype, x, is_training=is_training)
    assert np.isnan(result[1, 2, 3, 5])
    for values in (result, *statistics):
        assert np.isnan(values[..., 5]).any()
        assert np.isfinite(np.delete(values, 5, axis=-1)).all()


def test_what_others_need_is_not_overwritten():
    # In inference, the result can take its input's place.
    x = draw(tf.float32, (2, 3, 4, 16))
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, x.shape)
        doubled = 2 * images
        (result,) = build_norm(doubled, is_training=False)
        (doubled_after, result, images_after), _ = run([doubled, result, images], {images: x})
    np.testing.assert_array_equal(images_after, x)
    np.testing.assert_array_equal(doubled_after, 2 * x)
    expected, *_ = expected_norms(2 * x, relu=True, is_training=False)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "data_format"), [(tf.float32, "NCHW"), (tf.float16, "NHWC")], ids=str
)
def test_what_it_does_not_know_is_tensorflows(dtype, data_format):
    x = draw(dtype, (2, 3, 4, 16))
    if data_format == "NCHW":
        x = x.transpose(0, 3, 1, 2)
    (result, *_), kinds = norms(dtype, x, data_format=data_format)
    expected = x if data_format == "NHWC" else x.transpose(0, 2, 3, 1)
    expected, *_ = expected_norms(expected, relu=True)
    if data_format == "NCHW":
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-3)
    assert OURS not in kinds


def test_tensorflows_own_gradient_gets_what_it_needs():
    x = draw(tf.float32, (4, 5, 6, 16))
    gradients = {}
    for is_training in (True, False):
        for faster in (True, False):
            with tf.Graph().as_default():
                images = tf1.placeholder(tf.float32, x.shape)
                result, *_ = build_norm(images, is_training=is_training)
                gradient = tf.gradients(tf.reduce_sum(result**2), images)[0]
                if faster:
                    (gradients[faster],), kinds = run([gradient], {images: x})
                    assert OURS not in kinds
                else:
                    with tf1.Session() as plain_session:
                        gradients[faster] = plain_session.run(gradient, {images: x})
        np.testing.assert_allclose(gradients[True], gradients[False], rtol=1e-5, atol=1e-6)


def check_threads():
    """Runs where every session has threads of its own: see test_cpu_threads."""
    for threads in (1, 3, 8):
        cores.worker_cores = lambda local_size, threads=threads: threads
        for dtype in DTYPES:
            for shape in ((2, 1, 1, 16), (5, 7, 6, 48), (2, 40, 40, 33)):
                assert OURS in check_norm(dtype, shape)


@needs_kernels
@pytest.mark.parametrize("is_training", [True, False])
def test_a_network_is_as_without(is_training):
    """Its logits, its gradients and its moving statistics, by the operation and by TensorFlow's."""
    rng = np.random.default_rng(5)
    images = rng.normal(size=(4, 33, 33, 3)).astype(np.float32)

    def train(config):
        with tf.Graph().as_default():
            tf1.set_random_seed(1)
            blocks = [
                resnet_v2.resnet_v2_block("block1", base_depth=32, num_units=2, stride=2),
                resnet_v2.resnet_v2_block("block2", base_depth=32, num_units=1, stride=1),
            ]
            with (
                slim.arg_scope(resnet_utils.resnet_arg_scope(batch_norm_decay=0.5)),
                cpu_gradients.overridden(),
            ):
                logits, _ = resnet_v2.resnet_v2(
                    tf1.placeholder_with_default(images, images.shape),
                    blocks,
                    num_classes=10,
                    is_training=is_training,
                )
            gradients = []
            if is_training:
                loss = tf.reduce_sum(logits**2)
                gradients = tf.gradients(loss, tf1.trainable_variables())
            with tf.control_dependencies(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)):
                done = tf.identity(logits)
            metadata = tf1.RunMetadata()
            options = tf1.RunOptions(output_partition_graphs=True)
            with tf1.Session(config=config) as network_session:
                network_session.run(tf1.global_variables_initializer())
                found = network_session.run([done, *gradients], None, options, metadata)
                moving = network_session.run(
                    tf1.moving_average_variables() or tf1.model_variables()
                )
        kinds = [node.op for graph in metadata.partition_graphs for node in graph.node]
        return [*found, *moving], kinds

    ours, kinds = train(session.create_config())
    expected, plain_kinds = train(tf1.ConfigProto())
    assert kinds.count(OURS) == sum("FusedBatchNorm" in kind for kind in plain_kinds) > 0
    # What is left are two convolutions' gradients by one preactivation, and the root's bias.
    assert plain_kinds.count("AddN") == 3 * is_training
    assert kinds.count("AddN") == 1 * is_training
    assert plain_kinds.count("SlimHorovodBiasGradient") == 5 * is_training
    assert kinds.count("SlimHorovodBiasGradient") == 1 * is_training
    largest = max(np.abs(value).max() for value in expected)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * largest)
