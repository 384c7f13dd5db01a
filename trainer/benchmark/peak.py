"""Measures how fast the device can multiply: the limit that a pass is compared with."""

import time
from collections.abc import Callable

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.graph import flops

# Runs are made to take at least this long, so that the cost of launching them does not count.
_LEAST_SEC = 0.03
_REPEATS = 12


def _create_operand(shape: list[int], dtype: tf.DType) -> tf.Tensor:
    """Returns a variable with random values, so that no run has to convert types."""
    return tf.Variable(tf.cast(tf.random.normal(shape), dtype)).read_value()


def _build_product(dtype: tf.DType, size: int) -> tf.Tensor:
    """Builds a matrix product [size, size] x [size, size]."""
    left, right = (_create_operand([size, size], dtype) for _ in range(2))
    return tf.matmul(left, right)


def _build_convolution(dtype: tf.DType, size: int) -> tf.Tensor:
    """Builds a 3x3 convolution with `size` channels of maps [28, 28]."""
    images = _create_operand([32, 28, 28, size], dtype)
    kernel = _create_operand([3, 3, size, size], dtype)
    return tf.nn.conv2d(images, kernel, 1, "SAME")


def _measure(
    build: Callable[[tf.DType, int], tf.Tensor],
    dtype: tf.DType,
    size: int,
    config: tf1.ConfigProto,
) -> tuple[float, float]:
    """Returns FLOP per second of the fastest of some runs, and that run's duration in seconds."""
    with tf.Graph().as_default() as graph:
        result = build(dtype, size)
        # One element leaves the device: all are computed, and no time goes into copies.
        fetch = tf.reshape(result, [-1])[0]
        work = flops.count_flops(graph.get_operations())
        with tf1.Session(config=config) as session:
            session.run(tf1.global_variables_initializer())
            run_once = session.make_callable(fetch)
            run_once()
            durations_sec = []
            for _ in range(_REPEATS):
                began = time.perf_counter()
                run_once()
                durations_sec.append(time.perf_counter() - began)
    return work / min(durations_sec), min(durations_sec)


def measure_peak_gflops(dtype: tf.DType, config: tf1.ConfigProto) -> float:
    """Returns the device's highest rate in `dtype`, GFLOP/s.

    It is the better one of a matrix product and a convolution. Each is made larger until a run
    takes long enough, and each counts with its fastest run: a limit must not be measured too low.

    Args:
      dtype: type of the operands.
      config: configuration of the session: its device and its threads.
    """
    best = 0.0
    for build, smallest in ((_build_product, 1024), (_build_convolution, 128)):
        for size in (smallest * 2**doubling for doubling in range(5)):
            rate, duration_sec = _measure(build, dtype, size, config)
            best = max(best, rate)
            if duration_sec > _LEAST_SEC:
                break
    return best / 1e9
