"""BN over all workers' examples: 3 real workers against one process with the joined batch."""

import dataclasses

import joined_batch
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
from processes import horovodrun

from trainer.checkpoints import restore
from trainer.distributed import Group, Worker
from trainer.errors import ConfigError
from trainer.graph.images import normalize
from trainer.graph.losses import build_weight_decay
from trainer.graph.network import build_logits
from trainer.graph.sync_batch_norm import SyncBatchNorm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with what three workers left behind. Averages over two are test_distributed's."""
    path = tmp_path_factory.mktemp("3_workers")
    done = horovodrun(3, ["tests/programs/joined_batch.py", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def run_joined(folder, precision):
    """The same steps of TensorFlow's own BN on the joined batches; losses and final variables."""
    config = joined_batch.create_config(precision)
    parts = [dict(np.load(path)) for path in sorted(folder.glob(f"{precision}_batches_*.npz"))]
    images = np.concatenate([part["images"] for part in parts], axis=1)
    labels = np.concatenate([part["labels"] for part in parts], axis=1)
    model = dataclasses.replace(config.model, sync_batch_norm=False)
    with tf.Graph().as_default(), tf1.Session() as session:
        fed = tf1.placeholder(tf.uint8, images.shape[1:])
        fed_labels = tf1.placeholder(tf.int32, labels.shape[1:])
        logits = build_logits(
            model, normalize(fed, config.data), num_classes=tiny.NUM_CLASSES, is_training=True
        )
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(fed_labels, logits)
        variables = tf1.trainable_variables()
        loss = tf.reduce_mean(losses) + build_weight_decay(config, variables)
        gradients = tf.gradients(loss, variables)
        updates = tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)
        session.run(tf1.global_variables_initializer())
        initial = np.load(folder / f"{precision}_initial.npz")
        all_variables = {v.op.name: v for v in restore.network_variables()}
        restore.assign(session, [(v, initial[name]) for name, v in all_variables.items()])
        seen = []
        for step in zip(images, labels, strict=True):
            feeds = dict(zip((fed, fed_labels), step, strict=True))
            one_loss, slopes, _ = session.run((loss, gradients, updates), feeds)
            seen.append(one_loss)
            values = session.run(variables)
            moved = [
                value - joined_batch.LEARNING_RATE * slope
                for value, slope in zip(values, slopes, strict=True)
            ]
            restore.assign(session, list(zip(variables, moved, strict=True)))
        return seen, session.run(all_variables)


@pytest.mark.processes
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_workers_do_what_one_does_with_the_joined_batch(folder, precision, tolerance):
    losses, expected = run_joined(folder, precision)
    finals = [dict(np.load(path)) for path in sorted(folder.glob(f"{precision}_final_*.npz"))]
    batches = dict(np.load(folder / f"{precision}_batches_0.npz"))
    np.testing.assert_allclose(batches["loss"], losses, rtol=tolerance)
    initial = np.load(folder / f"{precision}_initial.npz")
    for name, value in expected.items():
        for final in finals:
            np.testing.assert_array_equal(final[name], finals[0][name], err_msg=name)
        # Compared is what the steps have changed: gradients, and the statistics' own updates.
        scale = max(np.max(np.abs(value - initial[name])), 0.1 * np.max(np.abs(value)))
        difference = np.max(np.abs(finals[0][name] - value)) / scale
        assert difference < tolerance, name


@pytest.mark.processes
def test_statistics_of_each_worker_alone_are_other_ones(folder):
    """So that the test above can fail: the workers' batches differ by far more than rounding."""
    parts = [np.load(path)["images"] for path in sorted(folder.glob("float32_batches_*.npz"))]
    means = [part.mean((1, 2, 3)) for part in parts]
    assert np.max(np.abs(means[0] - means[1])) > 0.3


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_a_layer_is_that_of_tensorflow_for_one_worker(data_format):
    """Outputs, statistics and all gradients, also of maps with the channels first."""
    rng = np.random.default_rng(0)
    shape = (4, 5, 6, 3) if data_format == "NHWC" else (4, 3, 5, 6)
    maps, weights = (rng.normal(3, 2, shape).astype(np.float32) for _ in range(2))
    gamma, beta = (rng.normal(size=3).astype(np.float32) for _ in range(2))
    with tf.Graph().as_default(), tf1.Session() as session:
        fed = [tf.constant(value) for value in (maps, gamma, beta)]
        with tf1.variable_scope("layer"):
            layer = SyncBatchNorm(Group(Worker()))
            ours = layer.normalize(*fed, epsilon=1e-3, data_format=data_format)
        slopes = tf.gradients(tf.reduce_sum(ours[0] * weights), fed)
        ours, slopes = session.run((ours, slopes))
    axes = (0, 1, 2) if data_format == "NHWC" else (0, 2, 3)
    shaped = [1, 1, 1, 3] if data_format == "NHWC" else [1, 3, 1, 1]
    with tf.GradientTape() as tape:
        fed = [tf.constant(value, tf.float64) for value in (maps, gamma, beta)]
        tape.watch(fed)
        mean, variance = tf.nn.moments(fed[0], axes, keepdims=True)
        scaled = (fed[0] - mean) / tf.sqrt(variance + 1e-3) * tf.reshape(fed[1], shaped)
        outputs = scaled + tf.reshape(fed[2], shaped)
        total = tf.reduce_sum(outputs * weights)
    for mine, theirs in zip(slopes, tape.gradient(total, fed), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[0], outputs, rtol=1e-4, atol=1e-4)
    count = maps.size // 3
    expected = np.squeeze(variance) * count / (count - 1)
    np.testing.assert_allclose(ours[2], expected, rtol=1e-5)


def test_channels_far_from_zero_keep_their_variance():
    """As two workers would: their means of squares are nearly the squares of their means."""

    class Halves(Group):
        def average(self, tensor, name):
            del name
            return (tensor + tf1.get_default_graph().get_tensor_by_name("other:0")) / 2

    rng = np.random.default_rng(0)
    maps = rng.normal(1000, 0.5, (8, 6, 6, 3)).astype(np.float32)
    exact = maps.astype(np.float64)
    half = exact[4:].reshape(-1, 3)
    sent = np.concatenate([half.mean(0), (half**2).mean(0)])
    with tf.Graph().as_default(), tf1.Session() as session:
        tf.constant(sent, name="other")
        layer = SyncBatchNorm(Halves(Worker(0, 2)))
        fed = (tf.constant(maps[:4]), tf.ones(3), tf.zeros(3))
        with tf1.variable_scope("layer"):
            variance = session.run(layer.normalize(*fed, epsilon=1e-3)[2])
    joined = exact.reshape(-1, 3)
    np.testing.assert_allclose(variance, joined.var(0, ddof=1), rtol=1e-3)


def test_layers_that_are_not_slims_fused_ones_are_refused():
    layer = SyncBatchNorm(Group(Worker(0, 2)))
    layer.check(0)
    with pytest.raises(
        ConfigError, match=r"--sync_batch_norm: must find slim's fused BN .* 2 of 2"
    ):
        layer.check(2)
