"""tf-slim's own layers and networks work on this TensorFlow once models.slim_compat is imported."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from models import slim_compat
from models.slim_compat import slim

tf1 = tf.compat.v1


@pytest.mark.parametrize("fused", [True, False])
def test_slims_batch_norm_normalizes_and_updates_with_its_default_arguments(fused):
    images = np.random.default_rng(0).normal(3, 2, (4, 5, 5, 2)).astype(np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        normalized = slim.batch_norm(tf.constant(images), scope="norm", fused=fused)
        updates = tf1.get_collection("update_ops")
        session.run(tf1.global_variables_initializer())
        result, _ = session.run([normalized, updates])
        (moving_mean,) = session.run(slim.get_variables_by_name("moving_mean"))
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    np.testing.assert_allclose(result, (images - mean) / np.sqrt(variance + 0.001), atol=1e-4)
    assert len(updates) == 2
    np.testing.assert_allclose(moving_mean, mean * (1 - 0.999), rtol=1e-3)


def test_slim_tells_a_tensor_from_a_python_value():
    with tf.Graph().as_default():
        assert bool(slim.utils.constant_value(tf.constant(True))) is True
        assert slim.utils.constant_value(tf1.placeholder(tf.bool)) is None


def test_a_graph_is_the_same_where_tensors_are_compared_as_objects():
    """Also that comparisons of a user's own code mean the same: in a graph none is an operation."""
    graphs = []
    for context in (contextlib.nullcontext, slim_compat.compared_as_objects):
        with context(), tf.Graph().as_default() as graph:
            tf1.set_random_seed(1)
            net = slim.conv2d(tf1.placeholder(tf.float32, [2, 8, 8, 3]), 4, 3, scope="conv")
            net = slim.batch_norm(net, scope="norm")
            assert (net == net.op.inputs[0], net == net.op.outputs[0]) == (False, True)
            loss = tf.cond(tf.reduce_sum(net) > 0, lambda net=net: tf.reduce_sum(net), lambda: 0.0)
            assert len(set(tf1.trainable_variables())) == 3
            tf1.train.AdamOptimizer().minimize(loss)
            graphs.append([(each.name, each.type) for each in graph.get_operations()])
    assert graphs[0] == graphs[1]
    assert bool((tf.constant([1, 2]) == tf.constant([1, 2])).numpy().all())  # As before.
