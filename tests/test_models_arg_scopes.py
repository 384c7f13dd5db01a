"""Effects of resnet_arg_scope on the layers, against numpy and the graph."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from tf_slim.nets import resnet_utils as slim_resnet_utils

import models
from models import arg_scopes, resnet_utils, resnet_v2
from models.slim_compat import slim

tf1 = tf.compat.v1

BLOCKS = [resnet_v2.resnet_v2_block("block1", base_depth=2, num_units=2, stride=2)]


def build(images, *, is_training=True, **scope_arguments):
    with slim.arg_scope(arg_scopes.resnet_arg_scope(**scope_arguments)):
        return resnet_v2.resnet_v2(images, BLOCKS, 3, is_training=is_training, scope="net")


def operations(op_type):
    return [op for op in tf1.get_default_graph().get_operations() if op.type == op_type]


def test_one_function_in_three_places():
    assert resnet_utils.resnet_arg_scope is arg_scopes.resnet_arg_scope
    assert resnet_v2.resnet_arg_scope is arg_scopes.resnet_arg_scope
    assert models.resnet_arg_scope is arg_scopes.resnet_arg_scope


def test_arguments_are_slims_in_slims_order():
    ours = list(inspect.signature(arg_scopes.resnet_arg_scope).parameters.values())
    slims = inspect.signature(slim_resnet_utils.resnet_arg_scope).parameters.values()
    assert [(p.name, p.default) for p in ours[: len(slims)]] == [(p.name, p.default) for p in slims]
    assert ours[-1].name == "is_training"
    assert ours[-1].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("collections", ["update_ops", ("update_ops",), ["update_ops", "mine"]])
def test_values_reach_every_layer(collections):
    with tf.Graph().as_default(), tf1.Session() as session:
        build(
            tf.zeros([2, 16, 16, 3]),
            batch_norm_decay=0.75,
            batch_norm_epsilon=0.125,
            batch_norm_updates_collections=collections,
        )
        norms = operations("FusedBatchNormV3")
        assert len(norms) == 7
        assert {op.get_attr("epsilon") for op in norms} == {0.125}
        updates = tf1.get_collection("update_ops")
        assert len(updates) == 2 * len(norms)
        assert len(tf1.get_collection("mine")) == (len(updates) if "mine" in collections else 0)
        rates = {session.run(op.outputs[0]) for op in operations("Const") if "decay" in op.name}
        assert rates == {0.25}
        # conv1, pool1's output: SAME padding halves 8 to 4.
        assert [op.outputs[0].shape[1] for op in operations("MaxPool")] == [4, 2]


def test_batch_norm_and_activation_can_be_left_out():
    with tf.Graph().as_default():
        build(tf.zeros([2, 16, 16, 3]), batch_norm_scale=False)
        assert not [v for v in tf1.global_variables() if "gamma" in v.name]
    with tf.Graph().as_default():
        build(tf.zeros([2, 16, 16, 3]), use_batch_norm=False, activation_fn=tf.nn.elu)
        # The unit's own pre-activations and postnorm stay.
        assert len(operations("FusedBatchNormV3")) == 3
        assert len(operations("Elu")) == 4


@pytest.mark.parametrize(
    ("in_call", "in_scope", "training"),
    [
        (True, None, True),
        (True, True, True),
        (True, False, False),
        (False, None, False),
        (False, True, False),
        (False, False, False),
    ],
)
def test_is_training_of_call_and_scope(in_call, in_scope, training):
    with tf.Graph().as_default():
        with slim.arg_scope(arg_scopes.resnet_arg_scope(is_training=in_scope)):
            resnet_v2.resnet_v2(tf.zeros([2, 16, 16, 3]), BLOCKS, is_training=in_call)
        assert {op.get_attr("is_training") for op in operations("FusedBatchNormV3")} == {training}
        assert bool(tf1.get_collection("update_ops")) == training


def test_is_training_of_the_scope_reaches_layers_outside_a_network():
    with tf.Graph().as_default():
        with slim.arg_scope(arg_scopes.resnet_arg_scope(is_training=False)):
            slim.batch_norm(tf.zeros([2, 4, 4, 3]))
        assert not tf1.get_collection("update_ops")


def test_weight_decay_loss_is_numpys_sum_over_convolution_weights_alone():
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(0)
        build(tf.zeros([2, 16, 16, 3]), weight_decay=0.01)
        initial = {
            v.initializer.inputs[1]: np.full(v.shape, 3.0)
            for v in tf1.global_variables()
            if not v.op.name.endswith("/weights")
        }
        session.run(tf1.global_variables_initializer(), initial)
        weights = session.run([v for v in tf1.global_variables() if v.shape.ndims == 4])
        losses = session.run(tf1.losses.get_regularization_losses())
    assert len(losses) == len(weights) == 9
    assert sum(losses) == pytest.approx(0.01 / 2 * sum((w**2).sum() for w in weights), rel=1e-5)


def test_without_weight_decay_there_is_no_loss():
    with tf.Graph().as_default():
        build(tf.zeros([2, 16, 16, 3]), weight_decay=0.0)
        assert not tf1.losses.get_regularization_losses()


def run_steps(*, with_updates, decay=0.8, steps=4):
    """Moving statistics after some batches: {variable: (the session's, numpy's)}."""
    rng = np.random.default_rng(1)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(2)
        images = tf1.placeholder(tf.float32, [3, 16, 16, 3])
        logits, _ = build(images, batch_norm_decay=decay)
        norms = {op.name.rpartition("/")[0]: op.inputs[0] for op in operations("FusedBatchNormV3")}
        session.run(tf1.global_variables_initializer())
        means = dict.fromkeys(norms, 0.0)
        variances = dict.fromkeys(norms, 1.0)
        updates = tf1.get_collection("update_ops") if with_updates else []
        for _ in range(steps):
            batch = rng.normal(1, 2, images.shape)
            maps, _, _ = session.run([norms, logits, updates], {images: batch})
            for scope, values in maps.items():
                flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
                means[scope] = decay * means[scope] + (1 - decay) * flat.mean(0)
                variances[scope] = decay * variances[scope] + (1 - decay) * flat.var(0, ddof=1)
        values = session.run({v.op.name: v for v in tf1.global_variables()})
        return {
            f"{scope}/{name}": (values[f"{scope}/{name}"], expected[scope])
            for scope in norms
            for name, expected in (
                ("moving_mean", means),
                ("moving_variance", variances),
            )
        }


def test_moving_statistics_are_numpys():
    statistics = run_steps(with_updates=True)
    assert len(statistics) == 14
    for name, (actual, expected) in statistics.items():
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_moving_statistics_stay_where_they_are_without_the_update_ops():
    for name, (actual, expected) in run_steps(with_updates=False).items():
        assert np.all(actual == (1 if name.endswith("variance") else 0))
        assert not np.allclose(actual, expected, rtol=1e-2), name


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_low_precision_images_keep_float32_masters_and_float32_batch_norm(dtype):
    asked = {}

    def float32_getter(getter, name, *args, dtype, **kwargs):
        asked.setdefault(name.rpartition("/")[2], set()).add(dtype)
        variable = getter(name, *args, dtype=tf.float32, **kwargs)
        return variable if dtype == tf.float32 else tf.cast(variable, dtype)

    with tf.Graph().as_default():
        with tf1.variable_scope("", custom_getter=float32_getter):
            logits, _ = build(tf1.placeholder(dtype, [2, 16, 16, 3]))
        assert logits.dtype == tf.float32
        assert {v.dtype.base_dtype for v in tf1.global_variables()} == {tf.float32}
        gradients = tf.gradients(tf.cast(logits, tf.float32), tf1.trainable_variables())
        assert {gradient.dtype for gradient in gradients} == {tf.float32}
        assert len(tf1.get_collection("update_ops")) == 14
    # The last layer has the masters themselves.
    assert asked.pop("weights") == asked.pop("biases") == {dtype, tf.float32}
    assert asked == {
        name: {tf.float32} for name in ("beta", "gamma", "moving_mean", "moving_variance")
    }
