"""Fine-tuning: what is taken from other weights, what is trained, and what stays to the bit."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import test_update
import tiny
from tf_slim.nets import resnet_v2 as slim_resnet_v2

from models.slim_compat import slim
from trainer.checkpoints import restore
from trainer.checkpoints.warm_start import WarmStart
from trainer.config import FineTuningConfig, ModelConfig
from trainer.distributed import Group
from trainer.errors import ConfigError, UserError
from trainer.graph import selection, train_step
from trainer.graph.averages import SUFFIX
from trainer.graph.network import build_logits
from trainer.inputs.dataset import open_dataset

BLOCKS = "resnet_v2_50/block1, resnet_v2_50/block2, resnet_v2_50/block3, resnet_v2_50/block4"


def create_config(**flags):
    config = test_update.create_config()
    return dataclasses.replace(config, fine_tuning=FineTuningConfig(**flags))


@pytest.fixture
def create_run():
    """Makes runs with flags of fine-tuning and closes their sessions."""
    runs = []

    def create(**flags):
        runs.append(test_update.Run(create_config(**flags)))
        return runs[-1]

    yield create
    for run in runs:
        run.session.close()


def test_what_is_not_trained_stays_to_the_bit(create_run):
    run = create_run(trainable_scopes="logits", freeze_batch_norm=True)
    before = run.values()
    for _ in range(20):
        assert run.step().is_applied == 1
    after = run.values()
    changed = {name for name in before if np.any(before[name] != after[name])}
    of_head = {"logits/weights", "logits/biases"}
    assert changed == {"global_step", *of_head, *(f"{name}/Momentum" for name in of_head)}
    assert set(run.train.gradient_names) == of_head


def test_without_freezing_bn_follows_the_data(create_run):
    run = create_run(trainable_scopes="logits")
    before = run.values()
    run.step()
    after = run.values()
    changed = {name for name in before if np.any(before[name] != after[name])}
    assert {"conv1/BatchNorm/moving_mean", "conv2/BatchNorm/moving_variance"} <= changed
    assert "conv1/BatchNorm/gamma" not in changed


def test_bn_of_what_is_trained_is_not_frozen(create_run):
    run = create_run(trainable_scopes="conv2,logits", freeze_batch_norm=True)
    before = run.values()
    run.step()
    after = run.values()
    for name in before:
        is_trained = not name.startswith("conv1") and not name.startswith("loss_scale")
        assert np.any(before[name] != after[name]) == is_trained, name


def test_all_bn_is_frozen_where_everything_else_is_trained(create_run):
    run = create_run(freeze_batch_norm=True)
    run.load("conv1/BatchNorm/moving_mean", np.full(8, 0.3, np.float32))
    before = run.values()
    run.step()
    after = run.values()
    for name in before:
        is_kept = "BatchNorm" in name or name.startswith("loss_scale")
        assert np.all(before[name] == after[name]) == is_kept, name


def test_frozen_bn_normalizes_by_its_stored_statistics(create_run):
    """The loss is that of the network as it would be evaluated."""
    run = create_run(freeze_batch_norm=True)
    run.load("conv1/BatchNorm/moving_variance", np.full(8, 4.0, np.float32))
    with run.graph.as_default():
        config = test_update.create_config()
        logits = build_logits(
            config.model,
            tf.cast(run.train.stream.batch.images, tf.float32) / 127.5 - 1,
            num_classes=tiny.NUM_CLASSES,
            is_training=False,
        )
        labels = run.train.stream.batch.labels
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        fetches = [run.train.metrics.cross_entropy, tf.reduce_mean(losses)]
    ours, reference = run.session.run(fetches)
    assert ours == pytest.approx(reference, rel=1e-5)


class CountingGroup(Group):
    """One worker, which notes what it would send to others."""

    def __init__(self):
        super().__init__()
        self.sent = {}

    def average(self, tensor, name):
        self.sent[name] = tensor.shape.num_elements()
        return super().average(tensor, name)


def test_only_the_heads_gradients_are_computed_and_sent():
    group = CountingGroup()
    config = create_config(trainable_scopes="logits", freeze_batch_norm=True)
    with tf.Graph().as_default() as graph:
        train_step.build_train_graph(config, group, open_dataset(config.data))
        kinds = {op.type for op in graph.get_operations()}
    # Beside the gradients: loss, cross-entropy, top-1 and the request, in one collective.
    assert group.sent == {
        "gradient/logits/weights": 8 * 4,
        "gradient/logits/biases": 4,
        "urgent/statistics": 4,
    }
    assert not any("Conv2DBackprop" in kind or "Filter" in kind for kind in kinds)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"trainable_scopes": "conv3"}, "--trainable_scopes: 'conv3' must be a scope .* conv1, "),
        ({"trainable_scopes": "logits,x/*"}, r"--trainable_scopes: 'x/\*' must be"),
        (
            {"trainable_scopes": "BatchNorm/moving_mean"},
            "--trainable_scopes: 'BatchNorm/moving_mean' must be",
        ),
    ],
)
def test_scopes_that_the_network_does_not_have_are_refused(flags, message):
    config = create_config(**flags)
    with tf.Graph().as_default(), pytest.raises(ConfigError, match=message):
        train_step.build_train_graph(config, Group(), open_dataset(config.data))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["w", "b"], "w, b"),
        (["net/a/w", "net/a/b", "net/b/w"], "net/a, net/b"),
        (["net/a/w"], "net/a"),
        ([], ""),
    ],
)
def test_the_outermost_scopes_that_differ_are_listed(names, told):
    assert selection._list_scopes(names) == told


def test_a_head_that_is_not_trained_has_no_rate_of_its_own():
    config = create_config(trainable_scopes="conv2", head_learning_rate_multiplier=10.0)
    message = "--head_learning_rate_multiplier: must be given with a network that trains"
    with tf.Graph().as_default(), pytest.raises(ConfigError, match=message):
        train_step.build_train_graph(config, Group(), open_dataset(config.data))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Checkpoints of slim's own resnet_v2_50 with 1001 classes, V1 and V2, and its logits."""
    folder = tmp_path_factory.mktemp("published")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(3)
        with slim.arg_scope(slim_resnet_v2.resnet_arg_scope()):
            logits, _ = slim_resnet_v2.resnet_v2_50(tf.constant(images), 1001, is_training=False)
        tf1.train.get_or_create_global_step()
        rng = np.random.default_rng(1)
        session.run(tf1.global_variables_initializer())
        perturbed = []
        for variable in tf1.global_variables():
            if "moving_" in variable.op.name or variable.op.name.endswith("gamma"):
                center = 0 if variable.op.name.endswith("moving_mean") else 1
                noise = center + rng.uniform(-0.1, 0.1, variable.shape).astype(np.float32)
                perturbed.append((variable, noise))
        restore.assign(session, perturbed)  # In one run: each new set of fetches costs 0.1 s.
        versions = {"v1": tf1.train.SaverDef.V1, "v2": tf1.train.SaverDef.V2}
        for name, version in versions.items():
            saver = tf1.train.Saver(write_version=version)
            saver.save(session, str(folder / f"{name}.ckpt"), write_meta_graph=False)
        return folder, images, np.squeeze(session.run(logits))


@pytest.mark.slow
def test_slims_own_checkpoint_gives_slims_logits(published):
    """In both versions of the format, each into variables that are initialized afresh."""
    folder, images, expected = published
    with tf.Graph().as_default(), tf1.Session() as session:
        logits = build_logits(
            ModelConfig(), tf.constant(images), num_classes=1001, is_training=False
        )
        initializer = tf1.global_variables_initializer()
        for version, ending in (("v1", ".ckpt"), ("v2", ".ckpt.index")):
            session.run(initializer)
            start = WarmStart(str(folder / f"{version}{ending}"), FineTuningConfig())
            messages = start.load(session)
            error = np.max(np.abs(session.run(logits) - expected)) / np.max(np.abs(expected))
            assert error < 1e-5
            assert messages == (
                f"started from the weights of {folder / version}.ckpt",
                "loaded: resnet_v2_50 (272 variables)",
                "not taken from the checkpoint: global_step (1 variable)",
            )


@pytest.mark.slow
def test_a_new_head_on_published_weights(published):
    folder, _, _ = published
    reader = tf.train.load_checkpoint(str(folder / "v1.ckpt"))
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(7)
        build_logits(ModelConfig(), tf.zeros([1, 32, 32, 3]), num_classes=10, is_training=False)
        flags = FineTuningConfig(exclude_scopes="block4/unit_3,logits")
        start = WarmStart(str(folder / "v1.ckpt"), flags)
        session.run(tf1.global_variables_initializer())
        variables = {variable.op.name: variable for variable in tf1.global_variables()}
        initial = session.run(variables)
        messages = start.load(session)
        values = session.run(variables)
    fresh = [name for name in values if "block4/unit_3/" in name or "/logits/" in name]
    for name, value in values.items():
        expected = initial[name] if name in fresh else reader.get_tensor(name)
        np.testing.assert_array_equal(value, expected, err_msg=name)
    assert messages[1:] == (
        "loaded: resnet_v2_50/conv1, resnet_v2_50/block1, resnet_v2_50/block2, "
        "resnet_v2_50/block3, resnet_v2_50/block4/unit_1, resnet_v2_50/block4/unit_2, "
        f"resnet_v2_50/postnorm ({272 - len(fresh)} variables)",
        "initialized afresh: resnet_v2_50/block4/unit_3, resnet_v2_50/logits "
        f"({len(fresh)} variables)",
        "not taken from the checkpoint: global_step, resnet_v2_50/block4/unit_3, "
        f"resnet_v2_50/logits ({len(fresh) + 1} variables)",
    )


def save_tiny(path, *, classes=tiny.NUM_CLASSES, averages=False, only=None):
    """A checkpoint of the tiny network whose variables are 1, or 2 where they are averages."""
    with tf.Graph().as_default(), tf1.Session() as session:
        images = tf.zeros([1, 16, 16, 3])
        build_logits(
            test_update.create_config().model, images, num_classes=classes, is_training=True
        )
        variables = {v.op.name: v for v in tf1.global_variables() if only in (None, v.op.name)}
        session.run([tf1.assign(v, tf.ones_like(v)) for v in variables.values()])
        if averages:
            for name in list(variables):
                if not name.startswith("logits"):
                    value = np.full(variables[name].shape, 2, np.float32)
                    variables[name + SUFFIX] = tf1.Variable(value)
        session.run(tf1.variables_initializer([v for n, v in variables.items() if SUFFIX in n]))
        tf1.train.Saver(variables).save(session, str(path), write_meta_graph=False)


@functools.cache
def tiny_graph(ema_decay):
    """The tiny network's train graph, which does not depend on the start, and its initializer."""
    config = create_config()
    optimizer = dataclasses.replace(config.optimizer, ema_decay=ema_decay)
    config = dataclasses.replace(config, optimizer=optimizer)
    with tf.Graph().as_default() as graph:
        train_step.build_train_graph(config, Group(), open_dataset(config.data))
        return graph, tf1.global_variables_initializer()


def start_tiny(path, *, ema_decay=None, head=None, **flags):
    """The tiny network's train graph after its start: messages and variables by name."""
    graph, initializer = tiny_graph(ema_decay)
    with graph.as_default(), tf1.Session() as session:
        start = WarmStart(str(path), FineTuningConfig(**flags), head)
        session.run(initializer)
        messages = start.load(session)
        return messages, session.run({v.op.name: v for v in tf1.global_variables()})


def test_averaged_weights_are_taken_where_that_is_asked_for(tmp_path):
    save_tiny(tmp_path / "ckpt", averages=True)
    _, plain = start_tiny(tmp_path / "ckpt")
    messages, averaged = start_tiny(tmp_path / "ckpt", init_averages=True)
    assert np.all(plain["conv1/weights"] == 1)
    assert np.all(averaged["conv1/weights"] == 2)
    assert np.all(averaged["logits/weights"] == 1)  # It has no average there.
    assert messages[1:] == ("loaded: conv1, conv2, logits (12 variables): 10 of them averages",)
    save_tiny(tmp_path / "raw")
    with pytest.raises(
        UserError, match="--init_averages: must be given with a checkpoint that has"
    ):
        start_tiny(tmp_path / "raw", init_averages=True)


def test_averages_of_a_run_begin_at_the_weights_it_starts_from(tmp_path):
    save_tiny(tmp_path / "ckpt", classes=7)
    messages, values = start_tiny(tmp_path / "ckpt", ema_decay=0.9)
    assert np.all(values[f"conv1/weights{SUFFIX}"] == 1)
    head = values["logits/weights"]
    assert np.any(head != 1)
    np.testing.assert_array_equal(values[f"logits/weights{SUFFIX}"], head)
    assert "initialized afresh: logits (2 variables)" in messages


def test_a_head_that_is_fresh_and_not_trained_is_told(tmp_path):
    save_tiny(tmp_path / "ckpt", classes=7)
    messages, _ = start_tiny(tmp_path / "ckpt", trainable_scopes="conv2")
    assert messages[-1] == (
        "initialized afresh, and not trained: logits (2 variables): --trainable_scopes does not "
        "name them"
    )


def test_missing_variables_are_refused_or_left(tmp_path):
    save_tiny(tmp_path / "ckpt", only="conv1/weights")
    with pytest.raises(UserError, match="conv1/BatchNorm/beta is not in the checkpoint"):
        start_tiny(tmp_path / "ckpt")
    messages, values = start_tiny(tmp_path / "ckpt", ignore_missing=True)
    assert np.all(values["conv1/weights"] == 1)
    assert "loaded: conv1/weights (1 variable)" in messages
    assert "initialized afresh: conv1/BatchNorm, conv2, logits (11 variables)" in messages


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"exclude_scopes": "conv1,block9"}, "--exclude_scopes: 'block9' must be a scope .* conv1"),
        ({"exclude_scopes": "*"}, "must have some of the network's variables, got .* nothing"),
    ],
)
def test_a_start_that_takes_nothing_is_refused(tmp_path, flags, message):
    save_tiny(tmp_path / "ckpt")
    with pytest.raises(UserError, match=message):
        start_tiny(tmp_path / "ckpt", **flags)
