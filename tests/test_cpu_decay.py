"""Weight decay's gradient by the project's own operation on CPUs, against numpy and TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels

from trainer.config import Config, ModelConfig
from trainer.cpu_kernels import library
from trainer.graph import losses
from trainer.machine import session

pytestmark = needs_kernels
OURS = "SlimHorovodDecayedGradient"
# Less than a vector; one task with lanes left over; several tasks.
SHAPES = [(3,), (3, 5, 7, 13), (3, 3, 64, 129)]
FACTOR = np.float32(0.3)


def draw(shape, dtype=tf.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype.as_numpy_dtype)


def run(fetches, feeds, config=None):
    """The values, and the kinds of all operations that ran."""
    with tf1.Session(config=config or session.create_config()) as decay_session:
        decay_session.run(tf1.global_variables_initializer())
        metadata = tf1.RunMetadata()
        options = tf1.RunOptions(output_partition_graphs=True)
        found = decay_session.run(fetches, feeds, options, metadata)
    return found, [node.op for graph in metadata.partition_graphs for node in graph.node]


def build(dtype, shape, make):
    """make(gradient, weights, factor) in the default graph, and the feeds of the first two."""
    values = [draw(shape, dtype), draw(shape, seed=1)]
    inputs = [tf1.placeholder(value.dtype, shape) for value in values]
    return make(*inputs, tf.constant(FACTOR)), dict(zip(inputs, values, strict=True))


def decayed(gradient, weights, factor, *, is_first=True):
    # The other way round, so that it is a result, whose memory can be used again.
    terms = [tf.cast(-gradient, tf.float32), weights * factor]
    return tf.add_n(terms if is_first else terms[::-1])


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_first", [True, False])
def test_the_sum_is_numpys_to_the_bit(is_first, shape, dtype):
    with tf.Graph().as_default():
        fetch, feeds = build(dtype, shape, lambda *inputs: decayed(*inputs, is_first=is_first))
        # Fetched itself, it would be kept as it is.
        found, kinds = run(-fetch, feeds)
    gradient, weights = (value.astype(np.float64) for value in feeds.values())
    np.testing.assert_array_equal(found, (gradient - weights * FACTOR).astype(np.float32))
    assert kinds.count(OURS) == 1
    assert "AddN" not in kinds


def _three_terms(gradient, weights, factor):
    return -tf.add_n([gradient, weights * factor, weights])


def _factors_of_channels(gradient, weights, factor):
    return -tf.add_n([gradient, weights * tf.fill(weights.shape[-1:], factor)])


def _decay_is_needed(gradient, weights, factor):
    decay = weights * factor
    return -tf.add_n([gradient, decay]), tf.exp(decay)


def _decay_is_waited_for(gradient, weights, factor):
    decay = weights * factor
    with tf.control_dependencies([decay]):
        after = tf.exp(gradient)
    return -tf.add_n([gradient, decay]), after


@pytest.mark.parametrize(
    "make", [_three_terms, _factors_of_channels, _decay_is_needed, _decay_is_waited_for]
)
def test_other_sums_are_tensorflows(make):
    with tf.Graph().as_default():
        fetches, feeds = build(tf.float32, (3, 4, 16), make)
        found, kinds = run(fetches, feeds)
        expected, _ = run(fetches, feeds, tf1.ConfigProto())
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert OURS not in kinds


def test_what_is_fed_in_place_of_a_term_is_added():
    with tf.Graph().as_default():
        terms = []

        def make(gradient, weights, factor):
            terms.extend([tf.cast(-gradient, tf.float32), weights * factor])
            return -tf.add_n(terms)

        fetch, feeds = build(tf.bfloat16, (3, 4, 16), make)
        for term in terms:
            found, _ = run(fetch, feeds | {term: np.full((3, 4, 16), 1e6)})
            np.testing.assert_allclose(found, np.full((3, 4, 16), -1e6), rtol=1e-4)


def test_what_the_terms_wait_for_comes_first():
    with tf.Graph().as_default():
        variable = tf1.get_variable("v", initializer=0.0, use_resource=True)

        def make(gradient, weights, factor):
            with tf.control_dependencies([variable.assign_add(1)]):
                cast = tf.cast(-gradient, tf.float32)
            with tf.control_dependencies([variable.assign_add(2)]):
                decay = weights * factor
            with tf.control_dependencies([variable.assign_add(4)]):
                total = tf.add_n([cast, decay])
            with tf.control_dependencies([total]):
                return variable.read_value(), -total

        (found, _), kinds = run(*build(tf.bfloat16, (3, 4, 16), make))
    assert found == 1 + 2 + 4
    assert OURS in kinds


@pytest.mark.parametrize("wrong", ["gradient", "factor"])
def test_what_does_not_fit_is_refused(wrong):
    inputs = {"gradient": tf.zeros([3, 4]), "weights": tf.zeros([3, 4]), "factor": tf.zeros([])}
    with pytest.raises(tf.errors.InvalidArgumentError, match="must"):
        library.find().slim_horovod_decayed_gradient(**inputs | {wrong: tf.zeros([2])})


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_all_kernels_of_a_network_get_it(dtype):
    with tf.Graph().as_default():
        tf1.set_random_seed(1)
        names = ["a/weights", "b/weights", "b/biases"]
        variables = [tf1.get_variable(name, [8, 8], use_resource=True) for name in names]
        outputs = tf.constant(draw((4, 8)), dtype)
        for variable in variables:
            outputs = tf.matmul(outputs, tf.cast(variable, dtype))
        decay = losses.build_weight_decay(Config(model=ModelConfig(weight_decay=0.01)), variables)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2) + decay
        fetches = [-gradient for gradient in tf.gradients(loss, variables)]
        found, kinds = run(fetches, {})
        expected, plain_kinds = run(fetches, {}, tf1.ConfigProto())
    assert kinds.count(OURS) == 2 == plain_kinds.count("AddN") - kinds.count("AddN")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
