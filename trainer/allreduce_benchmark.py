"""--benchmark_passes=allreduce: how fast the workers average this network's gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from models.slim_compat import slim
from trainer import session, timing
from trainer.config import Config
from trainer.distributed import Group

# Sizes of single buffers, bytes, beside the gradients as they come: how the rate depends on fusion.
BUFFER_BYTES = tuple(2**20 * size for size in (1, 4, 16, 64))


def _gradient_shapes(config: Config) -> list[tf.TensorShape]:
    """The shapes of all gradients of the network."""
    network = models.get(config.model.model)
    size = config.data.image_size
    with tf.Graph().as_default(), slim.arg_scope(network.arg_scope_fn()):
        images = tf1.placeholder(tf.float32, [1, size, size, 3])
        network.fn(images, num_classes=config.model.num_classes or 1000, is_training=True)
        return [variable.shape for variable in tf1.trainable_variables()]


def _time_averages(
    config: Config, group: Group, shapes: Sequence[tf.TensorShape], name: str
) -> list[float]:
    """Times the averaging of tensors of the given shapes: seconds of each timed run."""
    with tf.Graph().as_default():
        tensors = [tf.Variable(tf.random.normal(shape)) for shape in shapes]
        averages = [
            group.average(tensor.read_value(), f"benchmark/{name}/{number}")
            for number, tensor in enumerate(tensors)
        ]
        # A collective that only has a control output would be pruned; one element of each is
        # enough to keep it.
        fetch = tf.add_n([tf.reshape(average, [-1])[0] for average in averages])
        worker = group.worker
        session_config = session.create_config(
            local_rank=worker.local_rank, local_size=worker.local_size
        )
        with tf1.Session(config=session_config) as allreduce_session:
            allreduce_session.run(tf1.global_variables_initializer())
            take = allreduce_session.make_callable(fetch)
            for _ in range(config.benchmark.benchmark_burn_in):
                take()
            group.gather(None)  # All begin together.
            clock = timing.StepClock()
            clock.start()
            durations_sec = []
            for _ in range(config.benchmark.benchmark_steps):
                take()
                durations_sec.append(clock.finish_step())
    return durations_sec


def _summarize(durations_sec: Sequence[float], size_bytes: int, workers: int) -> dict[str, Any]:
    """The figures of one row.

    Algorithm bandwidth is bytes / seconds; bus bandwidth is 2 (n - 1) / n of it, the rate that each
    of n workers sends at in a ring: it does not depend on n where the links are the limit.
    """
    statistics = timing.summarize(durations_sec)
    algorithm = size_bytes / (statistics.mean / 1000) / 1e9
    return {
        "bytes": size_bytes,
        "mean_sec": statistics.mean / 1000,
        "sd_sec": statistics.sd / 1000,
        "step_time_ms": statistics._asdict(),
        "algorithm_gb_per_sec": algorithm,
        "bus_gb_per_sec": algorithm * 2 * (workers - 1) / workers,
    }


def measure(config: Config, group: Group, say: Callable[[str], None]) -> dict[str, Any]:
    """Times the all-reduce of the network's float32 gradients, and of single buffers.

    Args:
      config: the network, and how many runs.
      group: the workers, who all call this.
      say: prints a line.

    Returns:
      the gradients' row, and under `buffers` one for each size.
    """
    workers = group.worker.size
    shapes = _gradient_shapes(config)
    size_bytes = 4 * sum(shape.num_elements() for shape in shapes)
    durations_sec = _time_averages(config, group, shapes, "gradients")
    gradients = _summarize(durations_sec, size_bytes, workers)
    buffers = [
        _summarize(
            _time_averages(config, group, [tf.TensorShape([size // 4])], f"buffer_{size}"),
            size,
            workers,
        )
        for size in BUFFER_BYTES
    ]
    say(f"allreduce: {workers} workers, float32; GB/s of 10^9 bytes")
    say(f"{'':>16}{'MiB':>9}{'ms':>10}{'sd':>9}{'algorithm GB/s':>16}{'bus GB/s':>10}")
    for label, row in (
        ("all gradients", gradients),
        *(("one buffer", row) for row in buffers),
    ):
        say(
            f"{label:>16}{row['bytes'] / 2**20:9.1f}{1000 * row['mean_sec']:10.2f}"
            f"{1000 * row['sd_sec']:9.2f}{row['algorithm_gb_per_sec']:16.2f}"
            f"{row['bus_gb_per_sec']:10.2f}"
        )
    return {
        "burn_in": config.benchmark.benchmark_burn_in,
        "steps": len(durations_sec),
        "workers": workers,
        "partial": False,
        **gradients,
        "buffers": buffers,
    }
