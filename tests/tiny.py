"""A network and a data set that are small enough for tests of whole runs.

They are plug-ins: --model=tiny:network --dataset=tiny:dataset, with this folder in PYTHONPATH.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from models.slim_compat import slim
from trainer.config import DataConfig, ModelConfig
from trainer.inputs.source import Source

FLAGS = [
    "--model=tiny:network",
    "--dataset=tiny:dataset",
    "--image_size=16",
    "--batch_size=8",
    "--augment=none",
    "--batch_norm_decay=0.9",
    "--base_learning_rate=1",
    "--log_every=7",
]
BATCH_SIZE = 8
NUM_CLASSES = 4
TRAIN_EXAMPLES = 90
VALIDATION_EXAMPLES = 37


def network(images, num_classes, is_training):
    """Two convolutions with BN, an average pool and a linear layer."""
    net = slim.conv2d(
        images, 8, 3, stride=2, scope="conv1", normalizer_params={"is_training": is_training}
    )
    net = slim.conv2d(
        net, 8, 3, stride=2, scope="conv2", normalizer_params={"is_training": is_training}
    )
    net = slim.flatten(slim.avg_pool2d(net, net.shape[1:3], scope="pool"))
    net = tf.cast(net, tf.float32)
    logits = slim.fully_connected(net, num_classes, activation_fn=None, scope="logits")
    return logits, {}


def network_without_bn(images, num_classes, is_training):
    """A convolution and a linear layer."""
    del is_training
    with slim.arg_scope([slim.conv2d], normalizer_fn=None):
        net = slim.conv2d(images, 8, 3, stride=2, scope="conv")
    net = slim.flatten(slim.avg_pool2d(net, net.shape[1:3], scope="pool"))
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


def deep_network(images, num_classes, is_training):
    """Eight convolutions with BN, conv0 to conv7, an average pool and a linear layer."""
    net = images
    for number in range(8):
        net = slim.conv2d(
            net, 32, 3, scope=f"conv{number}", normalizer_params={"is_training": is_training}
        )
    net = slim.flatten(slim.avg_pool2d(net, net.shape[1:3], scope="pool"))
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


def residual_network(images, num_classes, is_training):
    """Three residual units of 32 channels with BN, the second with dropout; a linear layer."""
    net = slim.conv2d(images, 32, 3, normalizer_fn=None, scope="conv")
    normalized = {"normalizer_params": {"is_training": is_training}}
    for number in range(3):
        with tf.compat.v1.variable_scope(f"unit_{number}"):
            preact = slim.batch_norm(
                net, activation_fn=tf.nn.relu, is_training=is_training, scope="preact"
            )
            branch = slim.conv2d(preact, 32, 3, scope="conv1", **normalized)
            if number == 1:
                branch = slim.dropout(branch, 0.8, is_training=is_training)
            branch = slim.conv2d(branch, 32, 1, activation_fn=None, normalizer_fn=None)
            net = net + branch
    net = tf.cast(tf.reduce_mean(tf.nn.relu(net), [1, 2]), tf.float32)
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


def poisoned_network(images, num_classes, is_training):
    """`network`, whose input is multiplied by what `poison:0` is fed, by default 1."""
    poison = tf.cast(tf.compat.v1.placeholder_with_default(1.0, [], name="poison"), images.dtype)
    return network(images * poison, num_classes, is_training)


def scaled_network(images, num_classes, is_training):
    """`network_without_bn`, whose input is multiplied by what `scale:0` is fed, by default 1."""
    scale = tf.compat.v1.placeholder_with_default(1.0, [], name="scale")
    return network_without_bn(images * scale, num_classes, is_training)


class Patches:
    """Noise with a square in the corner that the class names."""

    def __init__(self, examples, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(NUM_CLASSES, size=examples)
        self.images = rng.integers(0, 128, (examples, 16, 16, 3)).astype(np.uint8)
        for image, label in zip(self.images, self.labels, strict=True):
            row, column = divmod(label, 2)
            image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 127

    def read(self, index):
        data = io.BytesIO()
        Image.fromarray(self.images[index]).save(data, "PNG")
        return data.getvalue()

    def where(self, index):
        return f"patch {index}"


def dataset(config):
    """90 training and 37 validation examples."""
    del config
    return Source(
        name="patches",
        train=Patches(TRAIN_EXAMPLES, seed=1),
        validation=Patches(VALIDATION_EXAMPLES, seed=2),
        num_classes=NUM_CLASSES,
        class_names=("top left", "top right", "bottom left", "bottom right"),
        fingerprint="patches",
    )


def config_groups():
    """The configuration's groups for this network and this data."""
    return {
        "model": ModelConfig(model="tiny:network", weight_decay=0.01, batch_norm_decay=0.9),
        "data": DataConfig(
            dataset="tiny:dataset", image_size=16, batch_size=BATCH_SIZE, augment="none"
        ),
    }
