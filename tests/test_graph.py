"""The training step against numpy: BN's moving statistics, weight decay, losses, precision."""

import dataclasses
import functools
import re
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
from absl import flags as absl_flags
from tensorflow.core.util import event_pb2

from flags import command_line
from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.distributed import Group, HorovodGroup
from trainer.graph import moving_statistics, train_step
from trainer.graph.losses import build_cross_entropy
from trainer.inputs.dataset import open_dataset
from trainer.inputs.sources import tfrecord
from trainer.machine.session import create_config
from trainer.run import setup
from trainer.telemetry.writers.event_file import EventFileWriter
from trainer.timing import PhaseTimes

DECAY = 0.9


def run_steps(config, steps, *, fetch=(), learning_rate=0.1):
    """Takes steps of the trainer's own graph; returns initial and final variables, and fetches."""
    with tf.Graph().as_default():
        tf1.set_random_seed(1)
        train = train_step.build_train_graph(config, Group(), open_dataset(config.data))
        fetches = [tf1.get_default_graph().get_tensor_by_name(name) for name in fetch]
        variables = {variable.op.name: variable for variable in tf1.global_variables()}
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            session.run(train.stream.initializer, {train.stream.start_step: 0})
            initial = session.run(variables)
            taken = [
                session.run(
                    (train.metrics, fetches, train.train_op), {train.learning_rate: learning_rate}
                )
                for _ in range(steps)
            ]
            final = session.run(variables)
    return initial, final, [(metrics, values) for metrics, values, _ in taken]


@pytest.fixture(scope="module")
def stepped():
    """Four steps, and the input of conv1's BN in each."""
    config = Config(**tiny.config_groups())
    return run_steps(config, 4, fetch=["conv1/Conv2D:0"])


def test_moving_statistics_are_numpys(stepped):
    initial, final, steps = stepped
    mean, variance = (
        initial["conv1/BatchNorm/moving_mean"],
        initial["conv1/BatchNorm/moving_variance"],
    )
    for _, (values,) in steps:
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        mean = DECAY * mean + (1 - DECAY) * rows.mean(axis=0)
        # TensorFlow's fused BN moves the variance towards the unbiased estimate.
        variance = DECAY * variance + (1 - DECAY) * rows.var(axis=0, ddof=1)
    np.testing.assert_allclose(final["conv1/BatchNorm/moving_mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(final["conv1/BatchNorm/moving_variance"], variance, rtol=1e-4)


@pytest.mark.parametrize(
    ("decay", "steps", "said"),
    [
        (0.997, 270, "leaves 44% .* after 270 steps.* give at most 0.983$"),
        (0.997, 1, "leaves 100% .* give at most 0.01$"),
        (0.9, 30, "leaves 4% .* give at most 0.857$"),
        (0.9, 270, None),
        (0.997, 2000, None),
        (0.0, 1, None),
    ],
)
def test_a_run_too_short_for_them_is_told(decay, steps, said):
    names = ["conv1/weights", "conv1/BatchNorm/moving_variance"]
    lines = moving_statistics.describe_start(decay, steps, names)
    assert len(lines) == (said is not None)
    assert not lines or re.search(said, lines[0])
    assert moving_statistics.describe_start(decay, steps, names[:1]) == ()
    if said:
        (fitting,) = re.findall(r"give at most ([\d.]+)", lines[0])
        assert float(fitting) ** steps <= 0.01


def test_without_the_update_ops_they_stay(monkeypatch):
    monkeypatch.setattr(tf1.GraphKeys, "UPDATE_OPS", "nobody_asks_for_these")
    initial, final, _ = run_steps(Config(**tiny.config_groups()), 2)
    for name in ("conv1/BatchNorm/moving_mean", "conv2/BatchNorm/moving_variance"):
        np.testing.assert_array_equal(initial[name], final[name])


def test_weight_decay_is_over_kernels_alone(stepped):
    initial, _, steps = stepped
    kernels = [value for name, value in initial.items() if name.endswith("/weights")]
    assert len(kernels) == 3
    expected = 0.01 * sum(np.sum(kernel.astype(np.float64) ** 2) / 2 for kernel in kernels)
    assert steps[0][0].weight_decay_loss == pytest.approx(expected, rel=1e-6)
    metrics = steps[0][0]
    assert metrics.loss == pytest.approx(metrics.cross_entropy + expected, rel=1e-6)


@pytest.fixture(scope="module")
def descended():
    """A step of plain descent, by a learning rate of 0.5."""
    groups = tiny.config_groups() | {"optimizer": OptimizerConfig(optimizer="sgd")}
    return run_steps(Config(**groups), 1, learning_rate=0.5)


@pytest.mark.slow
def test_weight_decay_moves_kernels_and_nothing_else(descended):
    """Without a cross-entropy to follow, a step is lr * decay * w for kernels, and 0 for others."""
    groups = tiny.config_groups()
    groups["optimizer"] = OptimizerConfig(optimizer="sgd")
    with_decay = descended
    groups["model"] = ModelConfig(model="tiny:network", weight_decay=0.0, batch_norm_decay=DECAY)
    without = run_steps(Config(**groups), 1, learning_rate=0.5)
    for name, value in with_decay[0].items():
        moved = with_decay[1][name].astype(np.float64) - without[1][name]
        expected = -0.5 * 0.01 * value if name.endswith("/weights") else np.zeros_like(value)
        np.testing.assert_allclose(moved, expected, atol=5e-7, err_msg=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_numpys(smoothing):
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 1, 2], np.int32)
    targets = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    expected = -(targets * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1)
    with tf.Graph().as_default(), tf1.Session() as session:
        one_hot = tf.one_hot(labels, 4)
        ours = session.run(build_cross_entropy(tf.constant(logits), one_hot, smoothing))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_gradient_norm_is_the_update_of_plain_descent(descended):
    initial, final, steps = descended
    trained = [name for name in initial if "moving" not in name and name != "global_step"]
    squares = sum(np.sum(((final[name] - initial[name]) / 0.5) ** 2) for name in trained)
    assert steps[0][0].gradient_norm == pytest.approx(np.sqrt(squares), rel=1e-4)


@pytest.fixture(scope="module")
def exact():
    """Fifty steps in float32."""
    return run_steps(Config(**tiny.config_groups()), 50, learning_rate=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_keeps_float32_variables_and_follows_float32(exact, precision):
    groups = tiny.config_groups()
    groups["model"] = ModelConfig(
        model="tiny:network", weight_decay=0.01, batch_norm_decay=DECAY, precision=precision
    )
    initial, _, steps = run_steps(Config(**groups), 50, learning_rate=0.02)
    for name, value in exact[0].items():
        assert initial[name].dtype == value.dtype
        np.testing.assert_array_equal(initial[name], value, err_msg=name)
    losses = np.array([metrics.loss for metrics, _ in steps])
    expected = np.array([metrics.loss for metrics, _ in exact[2]])
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert np.any(losses != expected)
    assert steps[0][0].weight_decay_loss == exact[2][0][0].weight_decay_loss


@pytest.mark.parametrize(
    "optimizer",
    [
        "momentum",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("sgd", "nesterov", "adam")),
    ],
)
def test_every_optimizer_learns_one_batch(optimizer):
    groups = tiny.config_groups()
    groups["optimizer"] = OptimizerConfig(optimizer=optimizer)
    groups["data"] = DataConfig(
        dataset="tiny:dataset", image_size=16, batch_size=tiny.TRAIN_EXAMPLES, augment="none"
    )
    groups["run"] = RunConfig(seed=5)
    rate = {"sgd": 0.5, "adam": 0.02}.get(optimizer, 0.1)
    _, _, steps = run_steps(Config(**groups), 40, learning_rate=rate)
    assert steps[-1][0].cross_entropy < 0.6 * steps[0][0].cross_entropy


class Listening(Group):
    """Notes the order in which gradients come to be averaged."""

    def __init__(self):
        super().__init__()
        self.names = []

    def average(self, tensor, name):
        def note(value):
            self.names.append(name)
            return value

        result = tf.numpy_function(note, [tensor], tensor.dtype)
        result.set_shape(tensor.shape)
        return result


@pytest.mark.slow
def test_gradients_are_averaged_while_the_backward_pass_still_runs(monkeypatch):
    """On CPUs, too: the last layer's is on its way before the first layer's is there."""
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    groups = tiny.config_groups()
    groups["model"] = dataclasses.replace(groups["model"], model="tiny:deep_network")
    config, group = Config(**groups), Listening()
    session_config = create_config(local_size=2)
    session_config.use_per_session_threads = True  # Else they are those of the tests before.
    with tf.Graph().as_default():
        train = train_step.build_train_graph(config, group, open_dataset(config.data))
        with tf1.Session(config=session_config) as worker:
            worker.run(tf1.global_variables_initializer())
            worker.run(train.stream.initializer, {train.stream.start_step: 0})
            for _ in range(3):
                group.names.clear()
                worker.run(train.train_op, {train.learning_rate: 0.1})
                order = [name for name in group.names if name.endswith("/weights")]
                last, first = (f"gradient/conv{number}/weights" for number in (7, 0))
                assert len(order) == 9
                assert order.index(last) < order.index(first), order


def network_in_a_box(images, num_classes, is_training):
    """tiny's network, in a scope of its own as tf-slim's networks are."""
    with tf1.variable_scope("net"):
        return tiny.network(images, num_classes, is_training)


class NamedCollectives(HorovodGroup):
    """One of two workers, whose collectives have their names and do nothing."""

    def __init__(self):
        named = {
            "allreduce": lambda tensor, op, name: tf.identity(tensor, name=name),
            "alltoall": lambda tensor, name: tf.identity(tensor, name=name),
            "allgather": lambda tensor, name: tf.concat([tensor, tensor], 0, name=name),
            "broadcast": lambda tensor, root, name: tf.identity(tensor, name=name),
        }
        place = {"rank": 0, "size": 2, "local_rank": 0, "local_size": 2}
        fixed = {name: functools.partial(int, value) for name, value in place.items()}
        super().__init__(types.SimpleNamespace(Average=None, **named, **fixed))

    gather = Group.gather


OF_EVERY_RUN = {
    *("inputs", "net", "losses", "gradients", "gradient", "urgent", "update", "loss_scale"),
    *("global_step", "start", "save", "evaluation"),
}


@pytest.mark.parametrize(
    ("flags", "own"),
    [
        *((f"--optimizer={rule}", set()) for rule in ("sgd", "momentum", "nesterov", "rmsprop")),
        ("--optimizer=adam", {"beta1_power", "beta2_power"}),
        (
            "--optimizer=adam --head_learning_rate_multiplier=2 --ema_decay=0.9",
            {"beta1_power", "beta2_power", "beta1_power_1", "beta2_power_1"},
        ),
        ("--optimizer=adamw --precision=float16 --clip_global_norm=1", {"AdamW"}),
        ("--optimizer=lars --head_learning_rate_multiplier=2 --sync_batch_norm", set()),
        ("--optimizer=lamb --head_learning_rate_multiplier=2 --accumulate_steps=2", {"Lamb"}),
        ("--precision=bfloat16 --recompute=blocks --histogram_every=2", set()),
        ("--mixup=0.2 --cutmix=1 --loss=sigmoid --freeze_batch_norm --random_erasing=0.5", set()),
        ("--gradient_compression=float16 --trainable_scopes=conv2,logits", set()),
        ("--gradient_compression=bfloat16", set()),
        ("--gradient_reduction=adasum --xla", set()),
        ("--dataset=synthetic --precision=bfloat16", set()),
    ],
)
@pytest.mark.slow
def test_the_tab_graphs_shows_twelve_boxes_at_most(tmp_path, flags, own):
    """What update rules keep for themselves is shown within the update; its name stays."""
    words = ["--model=test_graph:network_in_a_box", *tiny.FLAGS[1:], *flags.split()]
    config = command_line.parse(["", *words, f"--logdir={tmp_path}"], absl_flags.FlagValues())
    built = setup.set_up(config, NamedCollectives(), PhaseTimes({}), first_step=0)
    built.session.close()
    graph = built.session.graph
    names = {variable.op.name.partition("/")[0] for variable in built.variables}
    assert names == {"net", "loss_scale", "global_step"} | own
    assert {op.name for op in graph.get_operations()} >= {v.op.name for v in built.variables}
    writer = EventFileWriter(str(tmp_path))
    writer.write_graph(graph)
    writer.flush()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    events = [
        event_pb2.Event.FromString(bytes(data))
        for _, data in tfrecord.scan(memoryview(path.read_bytes()), str(path))
    ]
    shown = tf1.GraphDef.FromString(events[-1].graph_def)
    boxes = {node.name.partition("/")[0] for node in shown.node}
    assert boxes <= OF_EVERY_RUN
    assert len(boxes) <= 12
    nodes = {node.name: node for node in shown.node}
    assert len(nodes) == len(shown.node) == len(graph.get_operations())
    of_update = {name.split("/")[1] for name in nodes if name.startswith("update/")}
    assert own <= of_update
    for node in nodes.values():
        for name in node.input:
            assert name.removeprefix("^").partition(":")[0] in nodes
