"""Collects each step's numbers on every worker, and writes the scalars of the whole run."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trainer.distributed import Group
from trainer.machine.gpu import Use, UseMeter
from trainer.telemetry import tags
from trainer.telemetry.console import Console
from trainer.telemetry.memory_use import MemoryUse
from trainer.telemetry.slow_worker import SlowWorkerWatch
from trainer.telemetry.step import Step
from trainer.telemetry.tags import RunStep
from trainer.telemetry.writers.protocol import Writer


class WorkerReport(NamedTuple):
    """A worker's numbers of the steps since the last exchange.

    Attributes:
      own_sec: `Step.own_sec` of each step.
      data_wait_sec: wait for input in each step.
      bad_examples: number of bad examples that the worker has found up to now.
      resident_mib: most main memory that it has used up to now.
      device_mib: most memory that it has used on its device up to now; None without a device.
      gpu_use: use of its GPU since the last exchange, by `gpu.Use`; None where it can't be told.
    """

    own_sec: list[float]
    data_wait_sec: list[float]
    bad_examples: int
    resident_mib: float
    device_mib: float | None
    gpu_use: Sequence[Any] | None = None


class StepLog:
    """Writes the scalars of all steps.

    Only the time until its gradients are ready differs between workers: from then on all wait for
    the slowest, and their step times are the same. One small collective exchanges these times of
    all steps since the last exchange.
    """

    def __init__(
        self,
        group: Group,
        writer: Writer,
        console: Console,
        *,
        images_per_step: int,
        count_bad_examples: Callable[[], int],
        memory_use: MemoryUse,
        watch: SlowWorkerWatch,
        gpu_meter: UseMeter | None = None,
    ) -> None:
        """Creates an empty log.

        Args:
          group: the workers. All of them must call `flush` after the same steps.
          writer: writer of the scalars.
          console: console that reports each step.
          images_per_step: number of images of a step, over all workers.
          count_bad_examples: function that returns the number of bad examples that this worker has
            found up to now.
          memory_use: memory use of this worker.
          watch: watch over all workers' times, to find a slow one.
          gpu_meter: meter of this worker's GPU; None where its use can't be told.
        """
        self._group = group
        self._writer = writer
        self._console = console
        self._images_per_step = images_per_step
        self._count_bad_examples = count_bad_examples
        self._memory_use = memory_use
        self._watch = watch
        self._gpu_meter = gpu_meter
        self._slowdowns: set[tuple[int, str]] = set()  # Those that were told.
        self._waiting: list[tuple[float, Step]] = []

    def add(self, step: Step) -> None:
        """Adds a step, whose scalars the next `flush` writes."""
        self._waiting.append((time.time(), step))
        self._console.report_step(step)

    def flush(self) -> None:
        """Writes the scalars of all steps since the last call. A collective."""
        if not self._waiting:
            return
        reports = [WorkerReport(*part) for part in self._group.gather(self._report())]
        bad_examples = sum(report.bad_examples for report in reports)
        own_sec = zip(*(report.own_sec for report in reports), strict=True)
        data_wait_sec = zip(*(report.data_wait_sec for report in reports), strict=True)
        times = zip(own_sec, data_wait_sec, strict=True)
        for (wall_time, step), (own, waits) in zip(self._waiting, times, strict=True):
            run = RunStep(step, own, waits, self._images_per_step, bad_examples)
            scalars = {row.name: row.value(run) for row in tags.EVERY_STEP if row.tells(run)}
            if step is self._waiting[-1][1]:
                scalars |= _memory_scalars(reports) | _gpu_scalars(reports)
            self._writer.write(step.number, scalars, wall_time=wall_time)
        self._waiting = []
        line = self._watch.add(
            [report.own_sec for report in reports], [report.data_wait_sec for report in reports]
        )
        if line is not None:
            self._console.say(line)
        self._tell_slowdowns(reports)

    def _tell_slowdowns(self, reports: Sequence[WorkerReport]) -> None:
        """Tells once why a worker's GPU is slower than it could be."""
        for rank, use in enumerate(_uses_of(reports)):
            for reason in () if use is None else use.slowdowns:
                if (rank, reason) not in self._slowdowns:
                    self._slowdowns.add((rank, reason))
                    self._console.say(
                        f"the GPU of worker {rank} is slowed down ({reason}): see nvidia-smi "
                        "-q -d PERFORMANCE,TEMPERATURE there"
                    )

    def _report(self) -> WorkerReport:
        return WorkerReport(
            own_sec=[step.own_sec for _, step in self._waiting],
            data_wait_sec=[step.metrics.data_wait_sec for _, step in self._waiting],
            bad_examples=self._count_bad_examples(),
            resident_mib=self._memory_use.resident_mib(),
            device_mib=self._memory_use.device_mib(),
            gpu_use=None if self._gpu_meter is None else self._gpu_meter.take(),
        )


def _uses_of(reports: Sequence[WorkerReport]) -> list[Use | None]:
    """Returns the use of each worker's GPU, in order of rank."""
    return [None if report.gpu_use is None else Use(*report.gpu_use) for report in reports]


def _gpu_scalars(reports: Sequence[WorkerReport]) -> dict[str, float]:
    """Returns the scalars of the use of the workers' GPUs."""
    uses = [use for use in _uses_of(reports) if use is not None]
    of_tags: dict[str, list[float | None]] = {
        tags.GPU_UTILIZATION: [use.utilization_percent for use in uses],
        tags.GPU_POWER: [use.power_watts for use in uses],
        tags.GPU_MEMORY: [use.memory_mib for use in uses],
    }
    scalars = {}
    for tag, told in of_tags.items():
        values = [value for value in told if value is not None]
        if values:
            scalars[tag] = sum(values) / len(values)
        if values and len(reports) > 1:
            scalars[f"{tag}{tags.LEAST}"], scalars[f"{tag}{tags.MOST}"] = min(values), max(values)
    return scalars


def _memory_scalars(reports: Sequence[WorkerReport]) -> dict[str, float]:
    """Returns the scalars of the most memory that any worker has used."""
    scalars = {tags.PEAK_RESIDENT_MIB: max(report.resident_mib for report in reports)}
    on_devices = [report.device_mib for report in reports if report.device_mib is not None]
    if on_devices:
        scalars[tags.PEAK_DEVICE_MIB] = max(on_devices)
    return scalars
