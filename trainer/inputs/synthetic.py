"""`--dataset=synthetic`: one random batch, made once, on the device that uses it."""

import tensorflow as tf

from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.inputs.pipeline import Batch, Stream

NAME = "synthetic"
DEFAULT_CLASSES = 1000
IMAGENET_EXAMPLES = 1_281_167  # Of the training set of the challenge of 2012.
NUM_EXAMPLES = IMAGENET_EXAMPLES  # An epoch is as long.


def build_synthetic(config: DataConfig, worker: Worker, *, num_classes: int, seed: int) -> Stream:
    """Adds variables with random pixels and labels to the current graph.

    They are in no collection, so that they are neither saved nor broadcast, and only this stream
    initializes them.
    """
    shape = [config.batch_size, config.image_size, config.image_size, 3]
    with tf.name_scope("inputs"):
        seeds = tf.constant([seed, worker.rank])
        start_step = tf.compat.v1.placeholder(tf.int64, [], name="start_step")
        # int32, since GPUs have no such operation for uint8.
        pixels = tf.random.stateless_uniform(shape, seeds, 0, 256, tf.int32)
        labels = tf.random.stateless_uniform(shape[:1], seeds + 1, 0, num_classes, tf.int32)
        variables = [
            tf.compat.v1.Variable(value, trainable=False, collections=[], use_resource=True)
            for value in (tf.cast(pixels, tf.uint8), labels)
        ]
        ones = tf.ones(shape[:1])
        boxes = tf.zeros([config.batch_size, 4], tf.int32)
        batch = Batch(variables[0].value(), variables[1].value(), ones, ones, boxes)
        initializer = tf.group(*(variable.initializer for variable in variables))
    return Stream(batch=batch, initializer=initializer, start_step=start_step, steps=None)
