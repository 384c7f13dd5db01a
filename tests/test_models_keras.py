"""The networks with Keras' first pool, beside slim's and its definition."""

import numpy as np
import pytest
import tensorflow as tf

import models
from models import resnet_v2
from models.slim_compat import slim

tf1 = tf.compat.v1


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 6), (7, 7)])
def test_the_first_pool_is_slims_or_that_of_keras(height, width):
    """Against the definitions, in NumPy: slim leaves out the border, Keras has zeros there."""
    images = np.random.default_rng(8).normal(-1, 1, (2, height, width, 3)).astype(np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        with slim.arg_scope(models.resnet_arg_scope()):
            pools = [resnet_v2.first_pool(tf.constant(images), zeros) for zeros in (False, True)]
        slims, keras = session.run(pools)
    rows, columns = -(-height // 2), -(-width // 2)
    framed = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])

    def largest(maps, top, left):
        return maps[:, max(top, 0) : top + 3, max(left, 0) : left + 3].max(axis=(1, 2))

    for row, column in np.ndindex(rows, columns):
        # SAME on an odd size adds one on both sides, on an even size one behind the last.
        top, left = 2 * row - height % 2, 2 * column - width % 2
        np.testing.assert_array_equal(slims[:, row, column], largest(images, top, left))
        np.testing.assert_array_equal(keras[:, row, column], largest(framed, 2 * row, 2 * column))
    assert slims.shape == keras.shape == (2, rows, columns, 3)
    assert (keras >= 0)[:, 0].all()
    assert not (slims >= 0)[:, 0].all()


@pytest.mark.slow
def test_keras_networks_have_slims_variables_and_no_other_operations_than_its_padding():
    def build(name):
        with tf.Graph().as_default() as graph, slim.arg_scope(models.resnet_arg_scope()):
            models.get(name).fn(tf1.placeholder(tf.float32, [1, 65, 65, 3]), 7, is_training=True)
            names = {op.name: op.type for op in graph.get_operations()}
            return [(v.name, v.shape) for v in tf1.global_variables()], names

    variables, operations = build("keras_resnet_v2_50")
    variables_of_slims, operations_of_slims = build("resnet_v2_50")
    assert variables == variables_of_slims
    added = {"resnet_v2_50/pool1_pad": "Pad", "resnet_v2_50/pool1_pad/paddings": "Const"}
    assert operations == operations_of_slims | added
