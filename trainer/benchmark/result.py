"""The result of a benchmark: its figures, and the table of them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from trainer import exit_status, timing
from trainer.errors import UserError
from trainer.machine import cores

# Two measurements of the same rate differ by this much on a quiet machine.
_PEAK_TOLERANCE = 1.02


@dataclasses.dataclass(frozen=True)
class PassResult:
    """The figures of a pass at a batch size.

    Attributes:
      batch_size: number of images per run.
      burn_in: number of runs before the timed ones.
      steps: number of timed runs.
      partial: whether the pass was interrupted before the last of its runs.
      mean_sec, sd_sec: mean and standard deviation (the population's) of a run's duration.
      step_time_ms: all statistics of the durations.
      images_per_sec: all images / all seconds.
      images_per_sec_per_core: images_per_sec / the number of cores that this process may use.
      build_sec: time for building the graph and its variables.
      first_run_sec: time of the first run, with the graph's optimization and compilation.
      gflops_per_image: GFLOP of convolutions and matrix products, from the graph's shapes; 0 for
        input.
      achieved_gflops: GFLOP per second.
      peak_gflops: most GFLOP per second that this device was seen to do in this precision. A
        convolution counts with all multiplications of its definition, though an algorithm may need
        fewer; 0 for input.
      peak_fraction: achieved / peak; 0 for input.
      peak_memory_bytes: most memory in use: by the device's allocator on a GPU, by the resident set
        on a CPU.
      durations_sec: duration of each timed run.
    """

    batch_size: int
    burn_in: int
    steps: int
    partial: bool
    mean_sec: float
    sd_sec: float
    step_time_ms: dict[str, float]
    images_per_sec: float
    images_per_sec_per_core: float
    build_sec: float
    first_run_sec: float
    gflops_per_image: float
    achieved_gflops: float
    peak_gflops: float
    peak_fraction: float
    peak_memory_bytes: int
    durations_sec: tuple[float, ...]


def achieved_gflops(flops: int, durations_sec: Sequence[float]) -> float:
    """Returns the GFLOP/s of runs of `flops` floating-point operations each."""
    return flops * len(durations_sec) / math.fsum(durations_sec) / 1e9


def create_result(
    durations_sec: Sequence[float],
    *,
    label: str,
    batch_size: int,
    flops: int,
    burn_in: int,
    steps: int,
    build_sec: float,
    first_run_sec: float,
    peak_gflops: float,
    peak_memory_bytes: int,
) -> PassResult:
    """Returns the figures of a pass. Arguments that are not listed here are as in `PassResult`.

    Args:
      durations_sec: duration of each timed run; fewer than `steps` where it was interrupted.
      label: name of the pass in an error.
      flops: number of floating-point operations per run.
      steps: number of runs that were to be timed.

    Raises:
      UserError: the pass seems to be faster than the device can be.
    """
    statistics = timing.summarize(durations_sec)
    images_per_sec = timing.images_per_sec(batch_size, durations_sec)
    achieved = achieved_gflops(flops, durations_sec)
    if flops and achieved > _PEAK_TOLERANCE * peak_gflops:
        raise UserError(
            f"{label}: {achieved:.0f} GFLOP/s is above the measured peak of this device, "
            f"{peak_gflops:.0f} GFLOP/s: the measurement is wrong; do not use it",
            status=exit_status.FAILED,
        )
    return PassResult(
        batch_size=batch_size,
        burn_in=burn_in,
        steps=len(durations_sec),
        partial=len(durations_sec) < steps,
        mean_sec=statistics.mean / 1000,
        sd_sec=statistics.sd / 1000,
        step_time_ms=statistics._asdict(),
        images_per_sec=images_per_sec,
        images_per_sec_per_core=images_per_sec / cores.available_cores(),
        build_sec=build_sec,
        first_run_sec=first_run_sec,
        gflops_per_image=flops / batch_size / 1e9,
        achieved_gflops=achieved,
        peak_gflops=peak_gflops,
        peak_fraction=achieved / peak_gflops if peak_gflops else 0.0,
        peak_memory_bytes=peak_memory_bytes,
        durations_sec=tuple(durations_sec),
    )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The figures of a pass at one batch size or more.

    Attributes:
      rows: figures of each batch size that could be measured; at least one.
      failures: reason why a batch size could not be measured, by batch size.
      partial: whether Ctrl-C ended the sweep.
    """

    rows: tuple[PassResult, ...]
    failures: dict[int, str] = dataclasses.field(default_factory=dict)
    partial: bool = False

    @property
    def best(self) -> PassResult:
        """Row with the most images per second."""
        return max(self.rows, key=lambda row: row.images_per_sec)

    def to_json(self) -> dict[str, Any]:
        """Returns the best row; where there are more, all of them under `sweep`."""
        content = dataclasses.asdict(self.best) | {"partial": self.partial}
        if len(self.rows) + len(self.failures) > 1:
            content["sweep"] = [dataclasses.asdict(row) for row in self.rows] + [
                {"batch_size": size, "error": error} for size, error in self.failures.items()
            ]
        return content

    def format(self, name: str) -> str:
        """Returns the table as text: a row per batch size, and lines about the best one."""
        lines = [
            f"{name}: ms per run (sd: the population's, of the runs), images per second",
            f"{'batch':>6}{'mean':>10}{'sd':>9}{'p50':>10}{'p90':>10}{'p99':>10}{'min':>10}"
            f"{'max':>10}{'images/s':>11}{'/core':>9}{'GFLOP/s':>10}{'of peak':>9}{'memory':>11}",
            *(_format_row(row) for row in self.rows),
            *(f"{size:6}  {error}" for size, error in self.failures.items()),
        ]
        best = self.best
        if best.gflops_per_image:
            lines.append(
                f"{best.gflops_per_image:.4g} GFLOP per image (2 x multiply-adds of convolutions "
                f"and products); measured peak {best.peak_gflops:.1f} GFLOP/s"
            )
        lines.append(
            f"graph built in {best.build_sec:.1f} s; first run, with its optimization and "
            f"compilation, {best.first_run_sec:.1f} s"
        )
        if len(self.rows) > 1:
            lines.append(f"best: batch {best.batch_size}, {best.images_per_sec:.2f} images/s")
        return "\n".join(lines)


def _format_row(row: PassResult) -> str:
    times = row.step_time_ms
    columns = "".join(f"{times[key]:10.2f}" for key in ("p50", "p90", "p99", "min", "max"))
    return (
        f"{row.batch_size:6}{times['mean']:10.2f}{times['sd']:9.2f}{columns}"
        f"{row.images_per_sec:11.2f}{row.images_per_sec_per_core:9.2f}"
        f"{row.achieved_gflops:10.1f}{row.peak_fraction:9.3f}"
        f"{row.peak_memory_bytes / 2**20:7.0f} MiB"
    )
