"""Networks without variables: what is folded into convolutions, and that they predict as before."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny
from input_data import noise

from models import resnet_v2
from models.slim_compat import slim
from trainer.checkpoints import restore
from trainer.config import Config, DataConfig, ModelConfig
from trainer.graph.network import classify
from trainer.inputs.images import encoded
from trainer.inputs.images.reduction import find_parts
from trainer.modes.export import check, folding, frozen

tf1 = tf.compat.v1


def randomize(session, seed=0):
    """Gives a network's variables values as training might leave them.

    Of BN's scales, those whose variables are called `signed` are of both signs, and some are 0.
    """
    random = np.random.default_rng(seed)
    values = []
    for variable in restore.network_variables():
        shape = variable.shape.as_list()
        spread = 1 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.3
        value = random.normal(0, spread, shape)
        if variable.op.name.endswith(("gamma", "moving_variance")):
            value = random.uniform(0.3, 2, shape)
        if variable.op.name.endswith("signed/gamma"):
            value *= random.integers(-1, 2, shape)
        values.append((variable, value.astype(np.float32)))
    restore.assign(session, values)


class Built:
    """A network in a session, frozen, and both predictions for the same pixels."""

    def __init__(self, fn, *, size=16, precision="float32", num_classes=4):
        model = ModelConfig(model=fn, precision=precision)
        config = Config(model=model, data=DataConfig(image_size=size))
        pixels = np.stack([noise(number, size, size) for number in range(3)])
        with tf.Graph().as_default(), tf1.Session() as session:
            images = tf1.placeholder(tf.uint8, [None, size, size, 3])
            logits = classify(config, images, num_classes=num_classes)
            session.run(tf1.global_variables_initializer())
            randomize(session)
            self.own = session.run(logits, {images: pixels})
            self.frozen = frozen.freeze(session, images, logits)
        with tf.Graph().as_default(), tf1.Session() as session:
            images = tf1.placeholder(tf.uint8, [None, size, size, 3])
            (logits,) = tf.import_graph_def(
                self.frozen.graph_def,
                input_map={self.frozen.images: images},
                return_elements=[self.frozen.logits],
                name="",
            )
            self.exported = session.run(logits, {images: pixels})
        self.types = [node.op for node in self.frozen.graph_def.node]

    @property
    def difference(self):
        return np.abs(self.own - self.exported).max() / np.abs(self.own).max()


def units(images, num_classes, is_training):
    """Five of resnet_v2_50's kinds: with a convolution as their shortcut, with a stride, plain."""
    blocks = [
        resnet_v2.resnet_v2_block("block1", base_depth=64, num_units=3, stride=2),
        resnet_v2.resnet_v2_block("block2", base_depth=128, num_units=2, stride=1),
    ]
    return resnet_v2.resnet_v2(images, blocks, num_classes, is_training=is_training, scope="few")


@pytest.mark.slow
def test_a_residual_network_loses_the_normalization_around_its_convolutions():
    """Three in each unit; the one behind the last unit stays."""
    built = Built("test_export_folding:units", size=64, num_classes=11)
    assert built.frozen.num_folded == 3 * 5
    assert built.types.count("FusedBatchNormV3") == 1
    assert built.types.count("Maximum") == 5
    assert built.types.count("Relu") == 2 * 5 + 1
    assert not {"VarHandleOp", "ReadVariableOp", "Placeholder", "Identity"} & set(built.types)
    assert built.difference < 1e-4
    assert not [node for node in built.frozen.graph_def.node if "_gradient_op_type" in node.attr]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_kernels_of_low_precision_are_rounded_once(precision):
    built = Built("tiny:network", precision=precision)
    assert built.frozen.num_folded == 2
    assert built.types.count("Cast") == 3  # Of the images, twice, and before the last layer.
    assert built.difference < 0.02


def test_bounds_and_kernels_are_the_normalization_and_its_relu():
    """By the definition, in float64: channels of both signs, without a scale, and nearly so."""
    random = np.random.default_rng(0)
    scale = random.choice([-1, 1], 400) * 10.0 ** random.uniform(-40, 3, 400)
    scale[:20] = 0
    shift = random.normal(0, 1, 400)
    shift[10:30] = 0
    clip, before = folding._to_clip("norm", folding.Affine(scale, shift))
    x = random.normal(0, 3, (50, 400))
    weights, bias = random.normal(0, 1, (1, 1, 400, 6)), random.normal(0, 1, 6)
    behind = folding.Affine(random.normal(0, 1, 6), random.normal(0, 1, 6))
    kernel, added = folding._combine(weights, bias, before, behind)
    clipped = np.minimum(np.maximum(x, clip.lower.astype(float)), clip.upper.astype(float))
    own = (np.maximum(scale * x + shift, 0) @ weights[0, 0] + bias) * behind.scale + behind.shift
    sizes = np.abs(scale * x + shift) @ np.abs(weights[0, 0] * behind.scale)
    assert (
        np.abs(clipped @ kernel[0, 0] + added - own) <= 1e-6 * sizes
    ).all()  # Bounds are float32.


def shared(images, num_classes, is_training):
    """A convolution that is needed with and without its BN."""
    with slim.arg_scope([slim.conv2d], normalizer_fn=None, activation_fn=None):
        net = slim.conv2d(images, 8, 3, scope="conv")
    normalized = slim.batch_norm(net, is_training=is_training, scope="norm")
    net = tf.reduce_mean(tf.nn.relu(normalized) + net, [1, 2])
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


def unit(images, num_classes, is_training, *, shortcut=1, **convolution):
    """The beginning of a unit: BN, ReLU, and two convolutions of the same map."""
    with slim.arg_scope([slim.batch_norm], is_training=is_training):
        net = slim.conv2d(images, 16, 3, normalizer_fn=None, scope="conv1")
        net = slim.batch_norm(net, activation_fn=tf.nn.relu, scope="signed")
        plain = {"normalizer_fn": None, "activation_fn": None}
        one = slim.conv2d(net, 8, shortcut, 2, scope="shortcut", **convolution, **plain)
        other = slim.conv2d(net, 8, 1, 2, scope="conv2")
        other = slim.conv2d(other, 8, 1, scope="conv3", **plain)
        net = slim.batch_norm(one + other if shortcut == 1 else one, scope="norm")
    net = tf.reduce_mean(net, [1, 2])
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


def unit_without_borders(images, num_classes, is_training):
    return unit(images, num_classes, is_training, shortcut=3, padding="VALID")


def unit_with_zeros_around(images, num_classes, is_training):
    return unit(images, num_classes, is_training, shortcut=3, padding="SAME")


def of_the_batch(images, num_classes, is_training):
    """BN by the batch's own statistics, also where it is used."""
    del is_training
    net = slim.conv2d(images, 8, 3, scope="conv", normalizer_params={"is_training": True})
    net = tf.reduce_mean(net, [1, 2])
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


def branching(images, num_classes, is_training):
    """A layer within a branch that depends on the images."""
    del is_training
    net = tf.reduce_mean(images, [1, 2])
    weights = tf1.get_variable("kernel", [3, 8])
    net = tf.cond(tf.reduce_sum(net) > 0, lambda: net @ weights, lambda: net @ (weights + 1))
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("tiny:network", 2),
        ("tiny:network_without_bn", 0),
        ("tiny:poisoned_network", 2),
        ("test_export_folding:unit", 2),
        ("test_export_folding:unit_without_borders", 1),
        ("test_export_folding:unit_with_zeros_around", 0),
        ("test_export_folding:shared", 0),
        ("test_export_folding:of_the_batch", 0),
        ("test_export_folding:branching", 0),
    ],
)
def test_a_network_of_another_kind_stays_what_it_is(name, folded):
    built = Built(name)
    assert built.frozen.num_folded == folded
    assert built.difference < 1e-5


def test_a_scale_that_a_type_can_not_hold_is_not_folded(monkeypatch):
    """As where a channel hardly varies: 1e4 times a weight of 10 is no float16."""
    random = randomize

    def with_a_dead_channel(session):
        random(session)
        found = {variable.op.name: variable for variable in restore.network_variables()}
        for name, value in (("conv1/BatchNorm/gamma", 3e4), ("conv1/weights", 10.0)):
            restore.assign(session, [(found[name], np.full(found[name].shape, value, np.float32))])

    monkeypatch.setitem(globals(), "randomize", with_a_dead_channel)
    assert Built("tiny:network", precision="float16").frozen.num_folded == 1


def test_a_network_that_does_not_look_at_its_images_is_refused():
    with tf.Graph().as_default(), tf1.Session() as session:
        images = tf1.placeholder(tf.uint8, [None, 8, 8, 3])
        with pytest.raises(frozen.NotExportableError, match="do not depend on its images"):
            frozen.freeze(session, images, tf.ones([1, tiny.NUM_CLASSES]))


def test_weights_for_which_a_graph_has_no_room_are_refused(monkeypatch):
    monkeypatch.setattr(frozen, "_MOST_BYTES", 3000)
    with pytest.raises(
        frozen.NotExportableError, match=r"^its weights have 0\.0 GiB, where a graph"
    ):
        Built("tiny:network")
    Built("tiny:network", precision="bfloat16")


@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
def test_an_export_is_checked_with_a_picture_that_a_server_reduces(crop_fraction):
    config = DataConfig(image_size=32, crop_fraction=crop_fraction, cache="decoded")
    examples = check.Examples(config)
    headers = [encoded.read_header(data) for data in examples.encoded]
    sides = [int(crop_fraction * min(each.height, each.width)) for each in headers]
    windows = np.array(
        [
            [(each.height - side) // 2, (each.width - side) // 2, side, side]
            for each, side in zip(headers, sides, strict=True)
        ]
    )
    full = find_parts(headers, windows, dataclasses.replace(config, resize="bilinear"))
    parts = find_parts(headers, windows, config)
    assert (parts.decoders != full.decoders).any()
    assert examples.pixels.shape == (len(headers), 32, 32, 3)
