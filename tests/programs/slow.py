"""Plug-ins that are slow, or end, where environment variables say so.

SLOW_WORKERS_MS, SLOW_WORKERS_STEPS: training steps take so long on worker 0 for so many steps, then
on worker 1, and so on.
SLOW_INPUT_MS: reading a batch takes so long, however many threads read.
HANG_AT_EXAMPLE: the validation example that is never read.
END_AT_STEP: the process ends there without a word, as if it had been killed.
"""

import itertools
import os
import threading
import time

import tensorflow as tf
import tiny


def network(images, num_classes, is_training):
    """tiny.network, with what the environment asks for in training steps."""
    if is_training:
        shape = images.shape
        delayed = tf.numpy_function(_create_delay(), [images], images.dtype)
        images = tf.ensure_shape(delayed, shape)
    return tiny.network(images, num_classes, is_training)


def _create_delay():
    numbers = itertools.count(1)
    rank = int(os.environ.get("HOROVOD_RANK", "0"))
    delay_sec = int(os.environ.get("SLOW_WORKERS_MS", "0")) / 1000
    steps = int(os.environ.get("SLOW_WORKERS_STEPS", "1"))
    last = int(os.environ.get("END_AT_STEP", "0"))

    def delay(images):
        number = next(numbers)
        if delay_sec and (number - 1) // steps == rank:
            time.sleep(delay_sec)
        if number == last:
            time.sleep(3)  # Until what was logged is on the disk.
            os._exit(1)
        return images

    return delay


class SlowPatches(tiny.Patches):
    """Patches that take their time, one after another."""

    _lock = threading.Lock()

    def read(self, index):
        with self._lock:
            time.sleep(int(os.environ["SLOW_INPUT_MS"]) / 1000 / tiny.BATCH_SIZE)
        return super().read(index)


class HangingPatches(tiny.Patches):
    """Patches one of which never comes."""

    def read(self, index):
        if index == int(os.environ.get("HANG_AT_EXAMPLE", "-1")):
            time.sleep(3600)
        return super().read(index)


def dataset(config):
    """tiny.dataset, with slow training examples, and a validation example that may never come."""
    return tiny.dataset(config)._replace(
        train=SlowPatches(tiny.TRAIN_EXAMPLES, seed=1),
        validation=HangingPatches(tiny.VALIDATION_EXAMPLES, seed=2),
    )
