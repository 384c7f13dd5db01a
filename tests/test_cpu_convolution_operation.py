"""The convolutions' own operation on CPUs by itself: what it refuses, and the sizes it tells."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels

from trainer.cpu_kernels import gradients as cpu_gradients
from trainer.cpu_kernels import library
from trainer.machine import session


def convolve(inputs, filters, *, bias=(), norm=(), addends=(), padding=(0, 0, 0, 0)):
    """The operation, with zeros of these shapes, which it is not told before."""

    def zeros(shape):
        return tf1.placeholder_with_default(np.zeros(shape, np.float32), None)

    return library.find().slim_horovod_convolution(
        inputs=zeros(inputs),
        filter=zeros(filters),
        bias=[zeros(shape) for shape in bias],
        norm=[zeros(shape) for shape in norm],
        addends=[zeros(shape) for shape in addends],
        padding=padding,
    )


MAPS, RESULT = [1, 20, 20, 32], [1, 20, 20, 64]


@needs_kernels
@pytest.mark.parametrize(
    "wrong",
    [
        {"filters": [1, 1, 64, 64]},
        {"filters": [1, 1, 32, 40]},
        {"filters": [5, 5, 32, 64]},
        {"inputs": [1, 9, 9, 32]},
        {"inputs": [400, 32]},
        {"inputs": [400, 1, 1, 32], "filters": [3, 3, 32, 64]},  # No row is left, and no column.
        {"inputs": [0, 20, 20, 32]},
        {"padding": [0]},
        {"bias": [[32]]},
        {"bias": [[64], [64]]},
        {"norm": [[64], [64], [64]]},
        {"norm": [[64], [64], [64], [32]]},
        {"bias": [[64]], "norm": [[64]] * 4},
        {"addends": [MAPS]},
        {"addends": [RESULT, RESULT]},
        {"filters": [3, 3, 32, 64], "inputs": [1, 22, 22, 32], "addends": [RESULT]},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(wrong):
    with (
        tf.Graph().as_default(),
        tf1.Session() as plain,
        pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="must"),
    ):
        plain.run(convolve(**{"inputs": MAPS, "filters": [1, 1, 32, 64], **wrong}))


@needs_kernels
@pytest.mark.parametrize(
    ("maps", "padding", "sizes"),
    [
        ([None, 9, 11, 32], [0, 0, 0, 0], [None, 7, 9, 64]),
        ([2, 9, 11, 32], [-1, 0, 2, 1], [2, 6, 12, 64]),
        (None, [1, 1, 1, 1], [None, None, None, 64]),
    ],
)
def test_its_sizes_are_known_before(maps, padding, sizes):
    with tf.Graph().as_default():
        result = library.find().slim_horovod_convolution(
            inputs=tf1.placeholder(tf.float32, maps),
            filter=tf.zeros([3, 3, 32, 64]),
            bias=[],
            norm=[],
            addends=[],
            padding=padding,
        )
    assert result.shape.as_list() == sizes


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "outs", "points"),
    [(tf.float32, 4, 36), (tf.bfloat16, 2, 16)],
    ids=["float32", "bfloat16"],
)
def test_multiply_adds_that_tiles_do_without_are_counted(dtype, outs, points):
    """A tile of outs x outs pixels takes so many points, in place of 9 outs^2 multiply-adds."""
    batch, height, width, ins, channels = 3, 18, 13, 32, 64

    def count(size):
        with tf.Graph().as_default(), cpu_gradients.overridden():
            shapes = [batch, height, width, ins], [size, size, ins, channels]
            fed = [tf1.placeholder(dtype, [None] * 4) for _ in shapes]
            maps, filters = (
                tf.reshape(each, shape) for each, shape in zip(fed, shapes, strict=True)
            )
            result = tf.nn.conv2d(maps, filters, 1, "SAME")
            # What is fed or fetched is left as it is.
            results = [result, *tf.gradients(result, [maps, filters])]
            fetches = [tf.identity(each) for each in results]
            feeds = {each: np.zeros(shape) for each, shape in zip(fed, shapes, strict=True)}
            with tf1.Session(config=session.create_config()) as own:
                before = library.multiply_adds_left_out()
                own.run(fetches, feeds)
                return library.multiply_adds_left_out() - before

    tiles = batch * -(-height // outs) * -(-width // outs)
    left_out = (batch * height * width * 9 - tiles * points) * ins * channels
    assert count(3) == 3 * left_out  # The convolution and both of its gradients.
    assert count(1) == 0
