"""The layer table and the FLOP count, against the paper's sizes and TensorFlow's own profiler."""

import dataclasses
import json
import math

import pytest
import tensorflow as tf
import tiny

import models
from models import resnet_v2
from models.slim_compat import slim
from trainer.config import (
    Config,
    DataConfig,
    FineTuningConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from trainer.errors import ConfigError
from trainer.graph import flops, memory_estimate
from trainer.modes import describe

pytestmark = pytest.mark.slow

tf1 = tf.compat.v1


def profiled_flops(graph, op_type):
    """Returns what TensorFlow's profiler counts for the operations of a type."""
    options = tf1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    node = tf1.profiler.profile(graph, cmd="op", options=options)
    while node.name != op_type:
        (node,) = node.children
    return node.float_ops


def configuration(model, image_size=224, num_classes=None):
    return Config(
        mode="describe",
        model=ModelConfig(model=model, num_classes=num_classes),
        data=DataConfig(image_size=image_size),
    )


def run(folder, model, **settings):
    """Returns what --mode=describe writes to --result_json."""
    path = folder / "result.json"
    config = configuration(model, **settings)
    config = dataclasses.replace(config, run=RunConfig(result_json=str(path)))
    assert describe.run(config) == 0
    return json.loads(path.read_text())["result"]


def three_units(images, num_classes, is_training):
    """A block of units with another width, with none of these, and with a stride."""
    blocks = [resnet_v2.resnet_v2_block("block1", base_depth=64, num_units=3, stride=2)]
    return resnet_v2.resnet_v2(images, blocks, num_classes, is_training=is_training, scope="few")


@pytest.fixture(scope="module")
def resnet_v2_50():
    return describe.describe(models.get("resnet_v2_50"), image_size=224, num_classes=1000)


@pytest.mark.slow
def test_every_unit_of_resnet_v2_50_is_traced(resnet_v2_50):
    units = [layer for layer in resnet_v2_50.layers if layer.stages]
    expected = []
    size, channels = 56, 64
    for block, (count, depth) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for unit in range(1, count + 1):
            out = size // 2 if unit == count and block < 4 else size
            whole = (out, out, 4 * depth)
            stages = ((size, size, depth), (out, out, depth), whole)
            scope = f"resnet_v2_50/block{block}/unit_{unit}/bottleneck_v2"
            expected.append((scope, (size, size, channels), whole, stages, whole))
            size, channels = out, 4 * depth
    assert [(u.scope, u.input, u.shortcut, u.stages, u.output) for u in units] == expected


def test_parameters_and_gflops_of_a_unit_are_those_computed_by_hand(resnet_v2_50):
    unit = next(u for u in resnet_v2_50.layers if "block1/unit_1" in u.scope)
    shortcut, stages = 64 * 256, (64 * 64, 9 * 64 * 64, 64 * 256)
    biases, norms = 256 + 256, 2 * (64 + 64 + 64)
    assert unit.parameters == shortcut + sum(stages) + biases + norms
    assert unit.gflops == pytest.approx(2 * 56 * 56 * (shortcut + sum(stages)) / 1e9)


def test_rows_outside_units_and_totals(resnet_v2_50):
    rows = {u.scope.partition("/")[2]: u for u in resnet_v2_50.layers if not u.stages}
    assert list(rows) == ["conv1", "postnorm", "logits"]
    assert (rows["conv1"].input, rows["conv1"].output) == (
        (224, 224, 3),
        (112, 112, 64),
    )
    assert rows["conv1"].parameters == 7 * 7 * 3 * 64 + 64
    assert (rows["postnorm"].output, rows["postnorm"].gflops) == ((7, 7, 2048), 0)
    assert (rows["logits"].input, rows["logits"].output) == ((1, 1, 2048), (1, 1, 1000))
    assert resnet_v2_50.parameters == 25_568_360
    assert round(1e9 * resnet_v2_50.gflops_per_image) == 6_964_510_720


@pytest.mark.slow
def test_convolutions_are_counted_as_by_the_profiler():
    with tf.Graph().as_default() as graph:
        images = tf1.placeholder(tf.float32, [3, 224, 224, 3])
        with slim.arg_scope(models.resnet_arg_scope()):
            three_units(images, 1000, is_training=False)
    assert flops.count_flops(graph.get_operations()) == profiled_flops(graph, "Conv2D")


@pytest.mark.slow
def test_a_training_step_costs_three_times_the_forward_less_the_first_input_gradient():
    with tf.Graph().as_default() as graph:
        images = tf1.placeholder(tf.float32, [2, 64, 64, 3])
        with slim.arg_scope(models.resnet_arg_scope()):
            logits, end_points = three_units(images, 10, is_training=True)
        forward = flops.count_flops(graph.get_operations())
        gradients = tf.gradients(tf.reduce_sum(logits**2), tf1.trainable_variables())
        first = flops.count_op_flops(end_points["few/conv1"].op.inputs[0].op)
    assert first == 2 * 2 * 32 * 32 * 64 * 7 * 7 * 3
    step = flops.list_needed_operations(gradient.op for gradient in gradients)
    assert len(step) == len(set(step))
    assert flops.count_flops(step) == 3 * forward - first


@pytest.mark.parametrize("transpose", [False, True])
def test_products_and_depthwise_convolutions_are_counted(transpose):
    with tf.Graph().as_default() as graph:
        left = tf.zeros([7, 4] if transpose else [4, 7])
        tf.matmul(left, tf.zeros([7, 5]), transpose_a=transpose)
    assert flops.count_flops(graph.get_operations()) == 2 * 4 * 7 * 5
    with tf.Graph().as_default() as graph:
        tf.nn.depthwise_conv2d(tf.zeros([2, 8, 8, 3]), tf.zeros([3, 3, 3, 2]), [1] * 4, "SAME")
    assert flops.count_flops(graph.get_operations()) == 2 * 2 * 8 * 8 * (3 * 2) * 3 * 3


def test_an_unknown_shape_is_refused_by_name():
    with tf.Graph().as_default() as graph:
        images = tf1.placeholder(tf.float32, [None, 8, 8, 3])
        tf.nn.conv2d(images, tf.zeros([3, 3, 3, 4]), 1, "SAME", name="first")
    with pytest.raises(ValueError, match="operation first: must have static shapes"):
        flops.count_flops(graph.get_operations())


@pytest.mark.slow
def test_run_prints_the_table_and_writes_it(capsys, tmp_path):
    result = run(tmp_path, "resnet_v2_50", image_size=64, num_classes=10)
    lines = capsys.readouterr().out.splitlines()
    header = "layer input shortcut conv1 conv2 conv3 output parameters GFLOP"
    assert lines[0].split() == header.split()
    trace = "block1/unit_3 16x16x256 8x8x256 16x16x64 8x8x64 8x8x256 8x8x256 70,656 0.015"
    assert trace.split() in [line.split() for line in lines]
    *table, total, memory, length = lines
    assert len({len(line) for line in table}) == 1
    assert total.startswith("resnet_v2_50 at 64 px with 10 classes (--num_classes): ")
    # Of 32 images, as of the flags' defaults: weights, gradients, and momentum's slots.
    size = f"{4 * result['parameters'] / 2**20:,.0f}"
    assert f"gradients {size} + slots of momentum {size};" in memory
    assert result["steps"] == math.ceil(90 * 1_281_167 / 32)
    assert f"has {result['steps']:,} steps of 32 images: 90.0 epochs of ImageNet's" in length
    assert table[-1].split()[:2] == ["total", f"{result['parameters']:,}"]
    assert result["layers"][0]["output"] == [32, 32, 64]
    assert result["num_classes"] == 10
    assert result["parameters"] == sum(layer["parameters"] for layer in result["layers"])
    assert result["gflops_per_image"] == sum(layer["gflops"] for layer in result["layers"])


def test_another_network_has_a_row_per_convolution(capsys, tmp_path):
    result = run(tmp_path, "tf_slim.nets.vgg:vgg_a")
    rows = {layer["scope"]: layer for layer in result["layers"]}
    assert list(rows) == [
        *(f"vgg_a/{name}" for name in ("conv1/conv1_1", "conv2/conv2_1")),
        *(f"vgg_a/conv{block}/conv{block}_{unit}" for block in (3, 4, 5) for unit in (1, 2)),
        *(f"vgg_a/fc{number}" for number in (6, 7, 8)),
    ]
    # 3x3 kernel and the BN that the arg scope adds, beta and gamma.
    assert rows["vgg_a/conv2/conv2_1"]["parameters"] == 9 * 64 * 128 + 2 * 128
    assert rows["vgg_a/conv2/conv2_1"]["input"] == [112, 112, 64]
    assert rows["vgg_a/conv2/conv2_1"]["shortcut"] is None
    assert capsys.readouterr().out.splitlines()[0].split() == [
        "layer", "input", "output", "parameters", "GFLOP",
    ]  # fmt: skip


def test_what_another_network_calls_a_unit_may_have_other_convolutions():
    def network(images, num_classes, is_training):
        del is_training
        with tf1.variable_scope("net/unit/bottleneck_v2"):
            net = slim.conv2d(images, 4, 3, scope="depthwise")
        net = slim.flatten(slim.avg_pool2d(net, net.shape[1:3]))
        logits = slim.fully_connected(net, num_classes, scope="net/logits")
        return logits, {"net/unit/bottleneck_v2": net}

    other = models.get("tiny:network")._replace(fn=network)
    unit, head = describe.describe(other, image_size=8, num_classes=2).layers
    assert (unit.scope, unit.stages, unit.shortcut) == ("net/unit/bottleneck_v2", (), None)
    assert (unit.output, head.scope) == ((8, 8, 4), "net/logits")


@pytest.mark.parametrize(
    ("model", "image_size", "message"),
    [
        (
            "resnet_v2_50",
            31,
            "--image_size: must be at least 32 for resnet_v2_50, got 31",
        ),
        (
            "resnet_v2_18",
            224,
            "--model: must be one of resnet_v2_50, .*, got 'resnet_v2_18'",
        ),
    ],
)
def test_what_cannot_be_described_is_one_line(model, image_size, message):
    with pytest.raises(ConfigError, match=message):
        describe.run(configuration(model, image_size=image_size))


def memory_of(*, batch_size=8, tuning=FineTuningConfig(), model={}, **optimizer):  # noqa: B006, B008
    groups = tiny.config_groups()
    groups["model"] = dataclasses.replace(groups["model"], **model)
    groups["data"] = dataclasses.replace(groups["data"], batch_size=batch_size)
    config = Config(**groups, optimizer=OptimizerConfig(**optimizer), fine_tuning=tuning)
    return memory_estimate.estimate(config, tiny.NUM_CLASSES)


# Of the tiny network: two convolutions of 3 x 3 with BN, and a linear layer.
TRAINED = 4 * (3 * 3 * 3 * 8 + 2 * 8 + 3 * 3 * 8 * 8 + 2 * 8 + 8 * 4 + 4)
MOVING = 4 * (4 * 8)


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [("sgd", 0), ("momentum", 1), ("lars", 1), ("rmsprop", 2), ("adam", 2), ("lamb", 2)],
)
def test_variables_of_training_are_counted(optimizer, slots):
    memory = memory_of(optimizer=optimizer, ema_decay=0.9)
    assert memory.variables == TRAINED + MOVING
    assert memory.gradients == TRAINED
    assert memory.averages == TRAINED + MOVING
    # Besides, adam and lamb count their updates.
    assert slots * TRAINED <= memory.slots <= slots * TRAINED + 8


def test_activations_are_those_that_the_backward_pass_reads():
    """Per image, float32: both convolutions' inputs, results and ReLUs, the mean, the logits."""
    memory = memory_of()
    maps = [16 * 16 * 3, 8 * 8 * 8, 8 * 8 * 8, 4 * 4 * 8, 4 * 4 * 8]
    least = 4 * (sum(maps) + 8 + 4)
    assert least <= memory.activations / 8 <= 1.2 * least
    twice = memory_of(batch_size=16).activations
    assert twice == pytest.approx(2 * memory.activations, rel=0.01)
    assert memory_of(model={"precision": "bfloat16"}).activations < 0.6 * memory.activations
    tuning = FineTuningConfig(trainable_scopes="logits", freeze_batch_norm=True)
    of_head = memory_of(tuning=tuning)
    assert of_head.activations < 0.02 * memory.activations
    assert of_head.gradients == 4 * (8 * 4 + 4)


def test_sums_of_accumulated_gradients_are_counted():
    assert memory_of().sums == 0
    assert memory_of(accumulate_steps=3).sums == TRAINED


def test_with_recompute_the_ends_of_units_are_kept():
    """The first part begins at the images; random numbers of dropout are not of the batch."""
    model = {"model": "tiny:residual_network"}
    kept = memory_of(model=model | {"recompute": "none"})
    blocks = memory_of(model=model | {"recompute": "blocks"})
    # Per image, float32: the image, the first two units' results, the ReLU behind the last one.
    maps = 16 * 16 * 3 + 3 * 16 * 16 * 32
    assert 4 * maps <= blocks.activations / 8 <= 1.05 * 4 * maps
    assert kept.recomputed == 0
    # A unit has BN with ReLU, a convolution, and BN with ReLU again: which are copied once more,
    # one after the other, where they are compiled.
    assert blocks.recomputed >= 8 * 4 * 2 * 16 * 16 * 32
    assert blocks.total < kept.total
    assert kept.activations > 2 * blocks.activations
    assert (kept.variables, kept.gradients) == (blocks.variables, blocks.gradients)


def test_the_number_of_classes_is_the_datas_where_there_are_some(capsys):
    config = Config(mode="describe", **tiny.config_groups())
    assert describe.run(config) == 0
    assert f"with {tiny.NUM_CLASSES} classes (as many as " in capsys.readouterr().out
    config = dataclasses.replace(config, data=DataConfig(image_size=16))
    assert describe.run(config) == 0
    told = "with 1000 classes (assumed: neither --num_classes nor data are given): "
    assert told in capsys.readouterr().out
