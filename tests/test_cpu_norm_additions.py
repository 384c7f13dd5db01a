"""Additions to the gradient of BN's own operation on CPUs, which adds them in passing."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels
from test_cpu_norm import DTYPES, EPSILON, LARGE, MEAN, OURS, VARIANCE, build_norm, draw, run

from trainer.cpu_kernels import library
from trainer.machine import session

ADDITIONS = {
    # What is built of BN's gradient and another one, and whether the operation does it in passing.
    "with another": (lambda of, other: [tf.add_n([of.inputs_gradient, other])], True),
    "another with it": (lambda of, other: [tf.add_n([other, of.inputs_gradient])], True),
    "and the sum": (lambda of, other: with_sum(tf.add_n([of.inputs_gradient, other])), True),
    "and its own sum": (
        lambda of, other: [
            *with_sum(of.inputs_gradient)[1:],
            tf.add_n([of.inputs_gradient, other]),
        ],
        False,
    ),
    "with itself": (lambda of, other: [tf.add_n([of.inputs_gradient] * 2), other], False),
    "of three": (lambda of, other: [tf.add_n([of.inputs_gradient, other, other])], False),
    "and alone": (
        lambda of, other: [tf.add_n([of.inputs_gradient, other]), -of.inputs_gradient],
        False,
    ),
    "and fetched": (
        lambda of, other: [tf.add_n([of.inputs_gradient, other]), of.inputs_gradient],
        False,
    ),
    "with what depends on it": (
        lambda of, other: [tf.add_n([of.inputs_gradient, other * of.scale_gradient])],
        False,
    ),
}
SMALL = (3, 5, 7, 48)
# What changes BN's own operation; the others leave it as it is for large maps in test_cpu_norm.
CASES = [
    *(pytest.param(name, SMALL, id=f"{name}-small") for name in ADDITIONS),
    *(
        pytest.param(name, (*LARGE, 96), id=f"{name}-large", marks=pytest.mark.slow)
        for name in ("with another", "and the sum", "and its own sum")
    ),
]


def norm_gradient(gradient, inputs, mean, variance, addends=()):
    return library.find().slim_horovod_norm_gradient(
        gradient=gradient,
        inputs=inputs,
        scale=tf.fill(mean.shape, 2.0),
        offset=tf.fill(mean.shape, -0.3),
        mean=tf.constant(mean, tf.float32),
        variance=tf.constant(variance, tf.float32),
        addends=addends,
        epsilon=EPSILON,
        relu=True,
    )


def with_sum(gradient):
    return [gradient, library.find().slim_horovod_bias_gradient(gradient=gradient)]


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_what_is_added_to_the_gradient_is_added_in_passing(name, shape, dtype):
    build, is_merged = ADDITIONS[name]
    values = [draw(dtype, shape, seed) for seed in range(3)]
    x = values[0]
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    with tf.Graph().as_default():
        feeds = {tf1.placeholder(dtype, shape): each for each in values}
        images, by_result, another = feeds
        # What is computed can be taken for the result, but not what is fed: large results are then
        # stored past the cache.
        gradient = 2 * by_result if shape == SMALL else by_result
        of_norm = norm_gradient(gradient, images, mean, variance)
        if dtype == tf.bfloat16:
            of_norm = of_norm._replace(scale_gradient=tf.cast(of_norm.scale_gradient, dtype))
        # A graph that has come out wrong would be dropped, with BN's own operation.
        fetches = [*build(of_norm, another), build_norm(images)[0]]
        found, kinds = run(fetches, feeds)
        assert OURS in kinds
        with tf1.Session() as plain_session:
            expected = plain_session.run(fetches, feeds)
    assert ("AddN" not in kinds) == is_merged
    # The sum of what is rounded to bfloat16 is not that of what will be: by so many roundings.
    bound = 2**-7 if dtype == tf.bfloat16 else 1e-5
    for one, plain in zip(found, expected, strict=True):
        scale = np.sqrt(x.size / x.shape[-1]) if one.ndim == 1 else 1
        np.testing.assert_allclose(
            one, plain.astype(np.float64), rtol=bound, atol=10 * bound * scale
        )
    assert "SlimHorovodBiasGradient" not in kinds


@pytest.fixture
def parts():
    """BN's gradient, and another tensor, in a graph that is thrown away."""
    x, gradient, other = (draw(tf.float32, (2, 3, 4, 16), seed) for seed in range(3))
    with tf.Graph().as_default():
        tensors = [
            tf1.placeholder_with_default(values.astype(np.float32), x.shape)
            for values in (gradient, x, other)
        ]
        yield norm_gradient(*tensors[:2], np.full(16, MEAN), np.full(16, VARIANCE)), tensors[2]


@needs_kernels
@pytest.mark.parametrize("has_addition", [True, False])
def test_the_sum_of_what_is_fed_is_the_feeds(parts, has_addition):
    of_norm, other = parts
    gradient = tf.add_n([of_norm.inputs_gradient, other]) if has_addition else of_norm[0]
    summed = library.find().slim_horovod_bias_gradient(gradient=gradient)
    (found, _), _ = run([summed, of_norm.scale_gradient], {gradient: np.full((2, 3, 4, 16), 7)})
    np.testing.assert_array_equal(found, 2 * 3 * 4 * 7)


@needs_kernels
def test_what_the_sum_waits_for_comes_first(parts):
    of_norm, other = parts
    variable = tf1.get_variable("v", initializer=0.0, use_resource=True)
    with tf.control_dependencies([variable.assign_add(1)]):
        gradient = tf.add_n([of_norm.inputs_gradient, other])
    summed = library.find().slim_horovod_bias_gradient(gradient=gradient)
    with tf.control_dependencies([summed]):
        after = variable.read_value()
    with tf1.Session(config=session.create_config()) as order_session:
        for number in range(1, 4):
            if number == 1:
                order_session.run(variable.initializer)
            assert order_session.run([summed, after])[1] == number


@needs_kernels
@pytest.mark.parametrize("is_taken", [True, False])
def test_a_branch_that_is_not_taken_takes_nothing_along(parts, is_taken):
    of_norm, other = parts
    taken = tf1.placeholder(tf.bool, [])
    otherwise, branch = tf.raw_ops.Switch(data=other, pred=taken)
    added = tf.add_n([of_norm.inputs_gradient, branch])
    result = tf.raw_ops.Merge(inputs=[added, otherwise]).output
    (found, _), _ = run([result, of_norm.scale_gradient], {taken: is_taken})
    (gradient, other), _ = run([of_norm.inputs_gradient, other], {})
    np.testing.assert_allclose(found, gradient + other if is_taken else other, rtol=1e-6)


@needs_kernels
@pytest.mark.parametrize(
    ("gradient", "channels", "addends"),
    [
        ((2, 3, 4, 16), 16, [(2, 3, 4, 8)]),
        ((2, 3, 4, 16), 16, [(2, 3, 4, 16)] * 2),
        ((2, 3, 3, 16), 16, []),
        ((2, 3, 4, 16), 8, []),
    ],
)
def test_shapes_that_differ_are_refused(gradient, channels, addends):
    with tf.Graph().as_default():
        of_norm = norm_gradient(
            tf.zeros(gradient),
            tf.zeros([2, 3, 4, 16]),
            np.zeros(channels),
            np.ones(channels),
            [tf.zeros(shape) for shape in addends],
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match="must"), tf1.Session() as plain:
            plain.run(of_norm.inputs_gradient)
