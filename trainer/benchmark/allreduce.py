"""--benchmark_passes=allreduce: how fast the workers average this network's gradients."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import timing
from trainer.benchmark import gradient_order, transport
from trainer.benchmark.gradient_order import GradientOrder
from trainer.benchmark.runs import Say, time_runs
from trainer.config import Config
from trainer.distributed import URGENT, Group
from trainer.graph.reduction import reduce_gradients
from trainer.machine import session
from trainer.safety.protection import watch
from trainer.safety.watchdog import Watchdog

# Sizes of single buffers, bytes, which are timed besides the gradients: Horovod fuses small tensors
# into buffers, and the rate depends on how large these are. The first tells the latency.
BUFFER_BYTES = (2**12, *(2**20 * size for size in (1, 4, 16, 64)))


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of the reduction of some float32 tensors over all workers.

    Attributes:
      bytes: size of the tensors together in float32, whatever they travel as.
      steps: number of timed runs.
      mean_sec, sd_sec: mean and standard deviation (the population's) of a run's duration.
      step_time_ms: all statistics of the durations.
      algorithm_gb_per_sec: bytes / seconds / 10^9.
      bus_gb_per_sec: 2 (n - 1) / n times `algorithm_gb_per_sec`, the rate at which each of n
        workers sends in a ring: it does not depend on n where the links are the limit.
      durations_sec: duration of each timed run.
      cpu_sec: processor time of this process in a run; None where it was not measured.
    """

    bytes: int
    steps: int
    mean_sec: float
    sd_sec: float
    step_time_ms: dict[str, float]
    algorithm_gb_per_sec: float
    bus_gb_per_sec: float
    durations_sec: tuple[float, ...]
    cpu_sec: float | None = None


@dataclasses.dataclass(frozen=True)
class AllreduceResult:
    """The figures of the network's gradients, as Horovod fuses them, and of single buffers.

    Attributes:
      workers: number of workers.
      burn_in: number of runs before the timed ones.
      partial: whether Ctrl-C ended the measurement.
      gradient_reduction: the reduction: average, adasum.
      gradient_compression: the type in which they travel, none: float32.
      transport: the transport by which NCCL moves them, in words; None without NCCL.
      gradients: row of the gradients of all variables of the network.
      buffers: rows of the sizes in `BUFFER_BYTES`.
      order: gradients of the network, in the order in which they become ready.
    """

    workers: int
    burn_in: int
    partial: bool
    gradient_reduction: str
    gradient_compression: str
    transport: str | None
    gradients: Row
    buffers: tuple[Row, ...]
    order: tuple[GradientOrder, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the gradients' row, with the buffers' rows under `buffers`."""
        content = dataclasses.asdict(self)
        return content.pop("gradients") | content

    def format(self, name: str) -> str:
        """Returns the table as text."""
        kind = "" if self.gradient_reduction == "average" else f"{self.gradient_reduction}, "
        kind += self.gradient_compression.replace("none", "float32")
        lines = [
            f"{name}: {self.workers} workers, {kind}; sd: the population's; GB of 10^9 bytes",
            *([f"over: {self.transport}"] if self.transport else []),
            f"{'':>14}{'MiB':>9}{'mean ms':>10}{'sd':>9}{'p50':>10}{'p90':>10}{'p99':>10}"
            f"{'algorithm GB/s':>16}{'bus GB/s':>10}",
        ]
        labels = ["all gradients"] + ["one buffer"] * len(self.buffers)
        for label, row in zip(labels, (self.gradients, *self.buffers), strict=True):
            times = row.step_time_ms
            lines.append(
                f"{label:>14}{row.bytes / 2**20:9.4g}{times['mean']:10.2f}{times['sd']:9.2f}"
                f"{times['p50']:10.2f}{times['p90']:10.2f}{times['p99']:10.2f}"
                f"{row.algorithm_gb_per_sec:16.3f}{row.bus_gb_per_sec:10.3f}"
            )
        return "\n".join(lines)


def _time_averages(
    config: Config,
    group: Group,
    shapes: Sequence[tuple[int, ...]],
    name: str,
    say: Say,
    watchdog: Watchdog,
) -> tuple[tuple[float, ...], float]:
    """Times the reduction of tensors of some shapes, as a step does it.

    Returns:
      (seconds of each timed run, processor seconds of a run).
    """
    worker = group.worker
    with tf.Graph().as_default():
        tensors = [tf.Variable(tf.random.normal(shape)) for shape in shapes]
        values = [tensor.read_value() for tensor in tensors]
        names = [f"benchmark/{name}/{number}" for number in range(len(values))]
        averages = reduce_gradients(config, group, values, names)
        # A training step ends with an urgent tensor too. This one depends on the others, since
        # TensorFlow would average a constant once, before the first run.
        with tf.control_dependencies(values):
            last = tf.reshape(values[-1], [-1])[:1]
            averages.append(group.average(last, f"{URGENT}benchmark/{name}"))
        # One element of each leaves the device: all collectives run, and no time goes into copies.
        fetch = tf.add_n([tf.reshape(average, [-1])[0] for average in averages])
        session_config = session.create_config(
            local_rank=worker.local_rank, local_size=worker.local_size
        )
        with tf1.Session(config=session_config) as allreduce_session:
            allreduce_session.run(tf1.global_variables_initializer())
            run_averages = allreduce_session.make_callable(fetch)
            numbers = itertools.count(1)

            def run_watched() -> None:
                run_averages()
                watchdog.finish_step(next(numbers))

            with watchdog.long_phase(f"the first all-reduce of {name}"):
                run_averages()
                group.gather(None)  # All workers begin together.
            burn_in = config.benchmark.benchmark_burn_in
            began_sec = time.process_time()
            durations_sec = time_runs(
                run_watched,
                f"Allreduce of {name}",
                burn_in=burn_in,
                steps=config.benchmark.benchmark_steps,
                say=say,
            )
            cpu_sec = time.process_time() - began_sec
            return durations_sec, cpu_sec / (burn_in + len(durations_sec))


def create_row(
    durations_sec: Sequence[float], *, size_bytes: int, workers: int, cpu_sec: float | None = None
) -> Row:
    """Returns the row of runs in each of which `workers` workers reduced `size_bytes` bytes."""
    statistics = timing.summarize(durations_sec)
    algorithm = size_bytes / (statistics.mean / 1000) / 1e9
    return Row(
        bytes=size_bytes,
        steps=len(durations_sec),
        mean_sec=statistics.mean / 1000,
        sd_sec=statistics.sd / 1000,
        step_time_ms=statistics._asdict(),
        algorithm_gb_per_sec=algorithm,
        bus_gb_per_sec=algorithm * 2 * (workers - 1) / workers,
        durations_sec=tuple(durations_sec),
        cpu_sec=cpu_sec,
    )


def measure(config: Config, group: Group, say: Say) -> AllreduceResult:
    """Times the all-reduce of the network's gradients, and of single buffers.

    They are reduced, and travel, as --gradient_reduction and --gradient_compression say.

    Args:
      config: configuration with the network, the reduction and the number of runs.
      group: the workers, all of which call this.
      say: function that prints a line.
    """
    order = gradient_order.list_gradients(config)
    shapes = {"gradients": [each.shape for each in order]}
    shapes |= {f"buffer_{size // 2**10}KiB": [(size // 4,)] for size in BUFFER_BYTES}
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        stack.callback(transport.read_log)  # Removes it, whatever ends this.
        watchdog = stack.enter_context(watch(config.run, group.worker))
        for name, tensors in shapes.items():
            durations_sec, cpu_sec = _time_averages(config, group, tensors, name, say, watchdog)
            row = create_row(
                durations_sec,
                size_bytes=4 * sum(map(math.prod, tensors)),
                workers=group.worker.size,
                cpu_sec=cpu_sec,
            )
            rows.append(row)
            if rows[-1].steps < config.benchmark.benchmark_steps:
                break
        way = transport.describe(transport.read_log())
    return AllreduceResult(
        workers=group.worker.size,
        burn_in=config.benchmark.benchmark_burn_in,
        partial=rows[-1].steps < config.benchmark.benchmark_steps,
        gradient_reduction=config.communication.gradient_reduction,
        gradient_compression=config.communication.gradient_compression,
        transport=way,
        gradients=rows[0],
        buffers=tuple(rows[1:]),
        order=tuple(order),
    )
