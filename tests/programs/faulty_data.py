"""Plug-ins whose input goes wrong: --model=faulty_data:network, --dataset=faulty_data:dataset.

$BAD_EXAMPLES names examples whose pictures are all white, for which the network predicts NaN;
$SLEEPING_EXAMPLE the one whose reading never ends. $FINGERPRINT is the data's.
"""

import os
import time

import tensorflow as tf
import tiny


class FaultyPatches(tiny.Patches):
    """`tiny`'s pictures, some of them bad."""

    def __init__(self, examples, seed):
        super().__init__(examples, seed)
        for example in os.environ.get("BAD_EXAMPLES", "").split():
            self.images[int(example)] = 255

    def read(self, index):
        if str(index) == os.environ.get("SLEEPING_EXAMPLE"):
            self.sleep_for_ever()
        return super().read(index)

    def sleep_for_ever(self):
        while True:
            time.sleep(1)


def dataset(config):
    source = tiny.dataset(config)
    return source._replace(
        train=FaultyPatches(tiny.TRAIN_EXAMPLES, seed=1),
        fingerprint=os.environ.get("FINGERPRINT", "patches"),
    )


def network(images, num_classes, is_training):
    """`tiny`'s network, whose prediction for a white picture is not a number."""
    logits, end_points = tiny.network(images, num_classes, is_training)
    is_white = tf.reduce_all(images >= 1.0, axis=[1, 2, 3], keepdims=False)
    blind = tf.where(is_white, float("nan"), 0.0)
    return logits + blind[:, None], end_points
