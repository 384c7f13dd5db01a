"""--recompute: the same bits as without, less memory, and nothing that happens twice."""

import collections
import functools

import golden_losses
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from models.slim_compat import BatchNormChanges
from trainer.config import (
    Config,
    DataConfig,
    FineTuningConfig,
    ModelConfig,
    OptimizerConfig,
)
from trainer.distributed import Group, Worker
from trainer.errors import ConfigError
from trainer.graph import flops, recompute, scopes, train_step
from trainer.graph.network import build_logits
from trainer.graph.sync_batch_norm import SyncBatchNorm
from trainer.inputs.dataset import open_dataset
from trainer.machine import session

# In float16 a CPU takes a hundred times as long for a step, and its bits tell as much in a few.
STEPS = {"float32": 20, "bfloat16": 20, "float16": 2}
FILTER_GRADIENTS = ("SlimHorovodFilterGradient", "Conv2DBackpropFilter")
KERNELS = golden_losses.kernel_settings()[-1]  # On, where this machine has them.
# Kind, precision, compiled kernels, --accumulate_steps, --freeze_batch_norm.
CASES = [
    ("blocks", "float32", KERNELS, 2, False),
    ("auto", "bfloat16", KERNELS, 1, False),
    ("norms", "bfloat16", KERNELS, 1, False),
    ("blocks", "bfloat16", KERNELS, 1, False),
    ("blocks", "bfloat16", "off", 1, True),
    ("norms", "float16", "off", 1, False),
]


def configuration(kind, precision="float32", accumulate_steps=1, freezes=False, **data):
    data = {
        "dataset": "tiny:dataset",
        "image_size": 16,
        "batch_size": 8,
        "augment": "none",
    } | data
    return Config(
        model=ModelConfig(
            model="tiny:residual_network",
            precision=precision,
            recompute=kind,
            batch_norm_decay=0.9,
        ),
        data=DataConfig(**data),
        optimizer=OptimizerConfig(accumulate_steps=accumulate_steps),
        fine_tuning=FineTuningConfig(freeze_batch_norm=freezes),
    )


@functools.cache
def train(kind, precision, kernels, batches, freezes):
    """The losses of some steps, the final values of all variables, and what was recomputed."""
    config = configuration(kind, precision, batches, freezes)
    with golden_losses.kernels(kernels), tf.Graph().as_default():
        tf1.set_random_seed(1)
        graph = train_step.build_train_graph(config, Group(), open_dataset(config.data))
        variables = tf1.global_variables()
        initializer = tf1.global_variables_initializer()
        with tf1.Session(config=session.create_config()) as run:
            run.run(initializer)
            run.run(graph.broadcast_op)
            run.run(graph.stream.initializer, {graph.stream.start_step: 0})
            step = graph.create_step(run)
            losses = [step(0.05, 0.0)[0].loss for _ in range(STEPS[precision])]
            values = run.run(variables)
    names = [variable.op.name for variable in variables]
    return losses, dict(zip(names, values, strict=True)), graph.recomputed


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision", "kernels", "batches", "freezes"), CASES)
def test_losses_and_all_variables_are_those_without_it(kind, precision, kernels, batches, freezes):
    kept, expected, _ = train("none", precision, kernels, batches, freezes)
    losses, values, recomputed = train(kind, precision, kernels, batches, freezes)
    assert losses == kept
    assert len(set(losses)) == STEPS[precision]
    # With BN's moving statistics: they are moved once.
    assert all(np.array_equal(values[name], value) for name, value in expected.items())
    moved = [np.any(value) for name, value in values.items() if name.endswith("moving_mean")]
    assert len(moved) == 6
    assert all(moved) != freezes
    # Dropout's multiplication stands behind one of them.
    by_kernels = 5 if kernels == "on" else 0
    assert recomputed.parts == {"auto": by_kernels, "norms": 6, "blocks": 3}[kind]


class _TwoWorkers(Group):
    """A group of two of which each sends the same, and which counts what it sends."""

    def __init__(self):
        super().__init__(Worker(size=2))
        self.sent = collections.Counter()

    def average(self, tensor, name):
        def count(value):
            self.sent[name] += 1
            return value

        return tf.ensure_shape(tf.numpy_function(count, [tensor], tensor.dtype), tensor.shape)


def gradients_of_joined_batch(kind):
    """The gradients with --sync_batch_norm, and how often each collective ran in a step."""
    config = configuration(kind)
    group = _TwoWorkers()
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), tf1.Session(config=session.create_config()) as run:
        tf1.set_random_seed(1)
        images = tf.constant(rng.normal(size=(8, 16, 16, 3)), tf.float32) * tf1.Variable(1.0)
        logits = build_logits(
            config.model,
            images,
            num_classes=tiny.NUM_CLASSES,
            is_training=True,
            batch_norm=BatchNormChanges(lambda scope: False, SyncBatchNorm(group).normalize),
        )
        gradients, recomputed = recompute.compute_gradients(
            tf.reduce_mean(tf.square(logits)),
            tf1.trainable_variables()[1:],
            inputs=images,
            config=config.model,
        )
        run.run(tf1.global_variables_initializer())
        group.sent.clear()
        return run.run(gradients), group.sent, recomputed


@pytest.mark.slow
def test_collectives_of_sync_batch_norm_run_once():
    expected, sent, _ = gradients_of_joined_batch("none")
    gradients, sent_too, recomputed = gradients_of_joined_batch("blocks")
    assert recomputed.parts == 3
    assert sent == sent_too
    assert set(sent.values()) == {1}
    assert all(map(np.array_equal, gradients, expected))


def live_bytes(kind, kernels="off"):
    """The most bytes that tensors of a step have at a time, by TensorFlow's allocator."""
    config = configuration(kind)
    graph = tf.Graph()
    with (
        golden_losses.kernels(kernels),
        graph.as_default(),
        tf1.Session(config=session.create_config()) as run,
    ):
        images = tf1.Variable(tf.zeros([64, 32, 32, 3]))
        logits = build_logits(
            config.model, images * 2, num_classes=tiny.NUM_CLASSES, is_training=True
        )
        found, _ = recompute.compute_gradients(
            tf.reduce_mean(tf.square(logits)),
            tf1.trainable_variables()[1:],
            inputs=images,
            config=config.model,
        )
        run.run(tf1.global_variables_initializer())
        fetch = tf.linalg.global_norm(found)
        run.run(fetch)
        options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
        trace = tf1.RunMetadata()
        run.run(fetch, options=options, run_metadata=trace)
    records = sorted(
        (record.alloc_micros, record.alloc_bytes)
        for device in trace.step_stats.dev_stats
        for node in device.node_stats
        for memory in node.memory
        for record in memory.allocation_records
    )
    return max(np.cumsum([size for _, size in records]))


@pytest.mark.slow
def test_less_is_in_memory_at_a_time():
    kept, norms, blocks = map(live_bytes, ("none", "norms", "blocks"))
    assert norms < 0.8 * kept
    assert blocks < 0.65 * kept


@pytest.mark.skipif(KERNELS == "off", reason="this CPU does not run the compiled kernels")
def test_less_is_in_memory_with_the_compiled_kernels():
    assert live_bytes("auto", "on") < 0.8 * live_bytes("none", "on")


@pytest.mark.skipif(KERNELS == "off", reason="this CPU does not run the compiled kernels")
def test_cheap_results_of_copied_units_do_not_wait_for_their_gradients():
    config = configuration("blocks")
    with golden_losses.kernels("on"), tf.Graph().as_default() as graph:
        train_step.build_train_graph(config, Group(), open_dataset(config.data))
    gradients = [op for op in graph.get_operations() if op.type in FILTER_GRADIENTS]
    read = [op.inputs[0].op for op in gradients if op.inputs[0].op.type == "Relu"]
    copied = [op for op in read if op.name.startswith(scopes.RECOMPUTED)]
    waiting = [op.name for op in copied if not op.name.endswith("_1")]  # A copy of a copy.
    # Before the last convolution of a unit there is no wait; in the second one dropout is there.
    assert waiting == [f"{scopes.RECOMPUTED}unit_{number}/conv1/Relu" for number in (2, 0)]
    assert len(copied) == 5


@pytest.mark.parametrize("kernels", golden_losses.kernel_settings())
def test_statistics_of_a_batch_are_computed_again_only_without_the_compiled_kernels(kernels):
    config = configuration("norms")
    with golden_losses.kernels(kernels), tf.Graph().as_default() as graph:
        train_step.build_train_graph(config, Group(), open_dataset(config.data))
    norms = [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]
    first, again = (
        [op for op in norms if op.name.startswith(scopes.RECOMPUTED) == wanted]
        for wanted in (False, True)
    )
    assert all(op.get_attr("is_training") for op in first)
    assert len(again) == len(first) == 6
    for op in again:
        assert op.get_attr("is_training") == (kernels == "off")
        given = [tensor.op for tensor in op.inputs[3:]]
        assert kernels == "off" or (given[0] == given[1] and given[0] in first)


def test_what_would_take_time_is_kept_by_default():
    with golden_losses.kernels("off"), tf.Graph().as_default() as graph:
        config = configuration("auto")
        train_step.build_train_graph(config, Group(), open_dataset(config.data))
    assert not [op for op in graph.get_operations() if op.name.startswith(scopes.RECOMPUTED)]


def gradients_behind_padding(kind):
    """Gradients of a unit that pads between its convolutions, as slim does; kinds of copies."""
    rng = np.random.default_rng(0)

    def convolve(maps, channels, stride=1):
        shape = [3, 3, maps.shape[3], channels]
        kernel = tf1.Variable(rng.normal(size=shape), dtype=tf.float32, use_resource=True)
        return tf.nn.conv2d(maps, kernel, stride, "VALID" if stride > 1 else "SAME")

    with tf.Graph().as_default() as graph, tf1.Session(config=session.create_config()) as run:
        images = tf.constant(rng.normal(size=(8, 16, 16, 32)), tf.float32) * tf1.Variable(1.0)
        first = convolve(images, 32)
        maps, *_ = tf1.nn.fused_batch_norm(first, tf.ones([32]), tf.zeros([32]))
        padded = tf.pad(tf.nn.relu(maps), [[0, 0], [1, 1], [1, 1], [0, 0]])
        strided = tf.nn.relu(convolve(padded, 32, stride=2))  # Its gradient needs a copy, too.
        unit = convolve(strided, 32) + tf.nn.max_pool2d(first, 2, 2, "VALID")
        last = unit + convolve(unit, 32)
        gradients, _ = recompute.compute_gradients(
            tf.reduce_mean(tf.square(last)),
            tf1.trainable_variables()[1:],
            inputs=images,
            config=configuration(kind).model,
        )
        run.run(tf1.global_variables_initializer())
        again = [op for op in graph.get_operations() if op.name.startswith(scopes.RECOMPUTED)]
        return run.run(gradients), {op.type for op in again}


def test_padding_that_a_gradient_reads_is_kept():
    expected, none = gradients_behind_padding("none")
    gradients, copied = gradients_behind_padding("blocks")
    assert not none
    assert "FusedBatchNormV3" in copied
    assert "Pad" not in copied
    assert all(map(np.array_equal, gradients, expected))


@pytest.mark.slow
def test_flops_are_those_of_the_definition():
    def count(kind):
        config = configuration(kind, dataset="synthetic", augment="standard")
        with tf.Graph().as_default():
            graph = train_step.build_train_graph(config, Group(), open_dataset(config.data))
            needed = flops.list_needed_operations([graph.train_op])
        return flops.count_flops(needed), flops.count_flops_again(needed)

    # The first convolution, of three channels, and the first of each of three units.
    again = 2 * 8 * 16 * 16 * 32 * 9 * (3 + 3 * 32)
    once, none = count("none")
    assert count("blocks") == (once, again)
    assert none == count("norms")[1] == 0


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("tiny:network", "none", ()),
        (
            "tiny:network",
            "blocks",
            ("--recompute=blocks changes nothing: the network has no residual units",),
        ),
    ],
)
def test_a_network_without_residual_units_is_told(model, kind, expected):
    config = Config(
        model=ModelConfig(model=model, recompute=kind),
        data=DataConfig(dataset="synthetic", image_size=16, batch_size=8),
    )
    with tf.Graph().as_default():
        graph = train_step.build_train_graph(config, Group(), open_dataset(config.data))
    assert graph.recomputed.describe(kind) == expected


@pytest.mark.parametrize("kind", ["norms", "blocks"])
def test_xla_is_refused(kind):
    with pytest.raises(ConfigError, match="--recompute: must be auto or none with --xla"):
        ModelConfig(recompute=kind, xla=True)
    ModelConfig(xla=True)  # By default nothing is computed again with it.
