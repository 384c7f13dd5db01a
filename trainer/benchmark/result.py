"""The result of a benchmark: its figures, and the table of them."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from trainer import exit_status, timing
from trainer.benchmark.peak import TOLERANCE, Peak
from trainer.errors import UserError
from trainer.machine import load
from trainer.process import host_cores

_WIDTH = 80


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
      achieved_gflops: GFLOP per second, with all multiplications of a convolution's definition.
      made_gflops: GFLOP per second that were really made: an algorithm may need fewer. None where
        that is not known: on a GPU.
      peak_gflops: most GFLOP per second that this device was seen to keep up in this precision; 0
        for input.
      peak_fraction: made / peak, or achieved / peak where no more is known; 0 for input.
      peak: the measurement of `peak_gflops`; None for input.
      others_share: share of the cores, 0 to 1, that other processes took meanwhile; None where it
        can't be told, and where the pass runs on a GPU, for which the cores matter little.
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
    made_gflops: float | None
    peak_gflops: float
    peak_fraction: float
    peak: Peak | None
    others_share: float | None
    peak_memory_bytes: int
    durations_sec: tuple[float, ...]

    @property
    def is_disturbed(self) -> bool:
        """Returns whether other processes took so much that the share of the peak means nothing."""
        of_peak = None if self.peak is None else self.peak.others_share
        return load.is_busy(self.others_share) or load.is_busy(of_peak)

    def with_peak(self, peak: Peak | None) -> "PassResult":
        """Returns the figures with another peak, where the pass has one."""
        if not self.gflops_per_image or peak is None:
            return self
        share = _share(self.achieved_gflops, self.made_gflops, peak)
        return dataclasses.replace(self, peak_gflops=peak.gflops, peak_fraction=share, peak=peak)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PassResult":
        """Returns the figures that `Sweep.to_json` has turned into JSON."""
        peak = content["peak"] and Peak(**content["peak"])
        return cls(**{**content, "peak": peak, "durations_sec": tuple(content["durations_sec"])})


def achieved_gflops(flops: int, durations_sec: Sequence[float]) -> float:
    """Returns the GFLOP/s of runs of `flops` floating-point operations each."""
    return flops * len(durations_sec) / math.fsum(durations_sec) / 1e9


def _share(achieved_gflops: float, made_gflops: float | None, peak: Peak) -> float:
    """Returns the share of the peak; see `PassResult.peak_fraction`."""
    return (achieved_gflops if made_gflops is None else made_gflops) / peak.gflops


def create_result(
    durations_sec: Sequence[float],
    *,
    label: str,
    batch_size: int,
    flops: int,
    flops_left_out: int | None,
    burn_in: int,
    steps: int,
    build_sec: float,
    first_run_sec: float,
    peak: Peak | None,
    others_share: float | None,
    peak_memory_bytes: int,
) -> PassResult:
    """Returns the figures of a pass. Arguments that are not listed here are as in `PassResult`.

    Args:
      durations_sec: duration of each timed run; fewer than `steps` where it was interrupted.
      label: name of the pass in an error.
      flops: number of floating-point operations per run, by definition.
      flops_left_out: number of those that were not made, less those that were made in addition;
        None: it is not known.
      steps: number of runs that were to be timed.

    Raises:
      UserError: the pass seems to be faster than the device can be.
    """
    statistics = timing.summarize(durations_sec)
    images_per_sec = timing.images_per_sec(batch_size, durations_sec)
    achieved = achieved_gflops(flops, durations_sec)
    made = None
    if flops_left_out is not None:
        made = achieved_gflops(flops - flops_left_out, durations_sec)
    if peak is not None and made is not None and made > TOLERANCE * peak.gflops:
        raise UserError(
            f"{label}: {made:.0f} GFLOP/s is above the measured peak of this device, "
            f"{peak.gflops:.0f} GFLOP/s: the measurement is wrong; do not use it",
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
        images_per_sec_per_core=images_per_sec / host_cores.available_cores(),
        build_sec=build_sec,
        first_run_sec=first_run_sec,
        gflops_per_image=flops / batch_size / 1e9,
        achieved_gflops=achieved,
        made_gflops=made,
        peak_gflops=peak.gflops if peak else 0.0,
        peak_fraction=_share(achieved, made, peak) if peak else 0.0,
        peak=peak,
        others_share=others_share,
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

    def with_peak(self, peak: Peak | None) -> "Sweep":
        """Returns the figures with another peak."""
        return dataclasses.replace(self, rows=tuple(row.with_peak(peak) for row in self.rows))

    def format(self, name: str) -> str:
        """Returns the table as text: a row per batch size, and lines about the best one."""
        cells = [_list_cells(row) for row in self.rows]
        table = [list(cells[0]), *(list(each.values()) for each in cells)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        widths[0] = max(widths[0], *(len(str(size)) for size in self.failures), 0)
        lines = [
            f"{name}: ms per run (sd: the population's), images/s, most memory",
            *(
                "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
                for row in table
            ),
            *(_format_failure(size, widths[0], error) for size, error in self.failures.items()),
            *_describe_load(self.rows),
        ]
        best = self.best
        if best.peak is not None:
            lines += [
                f"{best.gflops_per_image:.4g} GFLOP per image (2 x multiply-adds of convolutions "
                "and products)",
                *_describe_left_out(best),
                f"measured peak {best.peak.gflops:.1f} GFLOP/s ({best.peak.runs} runs, "
                f"{best.peak.lowest_gflops:.1f} to {best.peak.highest_gflops:.1f})",
            ]
        lines.append(
            f"graph built in {best.build_sec:.1f} s; first run, with its optimization and "
            f"compilation, {best.first_run_sec:.1f} s"
        )
        if len(self.rows) > 1:
            lines.append(f"best: batch {best.batch_size}, {_shorten(best.images_per_sec)} images/s")
        return "\n".join(lines)


def _describe_left_out(row: PassResult) -> list[str]:
    """Returns a line about multiplications that an algorithm does without."""
    if row.made_gflops is None or row.made_gflops == row.achieved_gflops:
        return []
    per_image = row.made_gflops / row.images_per_sec
    if per_image > row.gflops_per_image:
        return [f"{per_image:.4g} are made, with what --recompute runs again: `of peak` is theirs"]
    return [f"{per_image:.4g} of them are made (3 x 3 convolutions by tiles): `of peak` is theirs"]


def _list_cells(row: PassResult) -> dict[str, str]:
    """Returns the texts of a row by the titles of their columns."""
    cells = {"batch": str(row.batch_size)}
    for name in ("mean", "sd", "p50", "p90", "p99"):
        cells[name] = _shorten(row.step_time_ms[name])
    cells["images/s"] = _shorten(row.images_per_sec)
    if row.gflops_per_image:
        cells["GFLOP/s"] = _shorten(row.achieved_gflops)
        cells["of peak"] = "-" if row.is_disturbed else f"{row.peak_fraction:.3f}"
    return cells | {"MiB": f"{row.peak_memory_bytes / 2**20:.0f}"}


def _shorten(value: float) -> str:
    """Returns a number with two decimals, with fewer where it has more than two digits before."""
    return f"{value:.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def _format_failure(size: int, width: int, error: str) -> str:
    indent = " " * (width + 2)
    return textwrap.fill(
        error,
        _WIDTH,
        initial_indent=f"{size:{width}}  ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _describe_load(rows: Sequence[PassResult]) -> list[str]:
    """Returns lines about other processes, where these took so much that figures mean little."""
    lines, peak = [], rows[0].peak
    shares = [row.others_share or 0.0 for row in rows if load.is_busy(row.others_share)]
    if shares:
        share = f"{'up to ' * (len(rows) > 1)}{100 * max(shares):.0f} %"
        lines.append(
            f"other processes took {share} of the cores: times mean little; repeat on a quiet "
            "machine"
        )
    if peak is not None and load.is_busy(peak.others_share) and len(shares) < len(rows):
        lines.append(
            f"other processes took {100 * (peak.others_share or 0.0):.0f} % of the cores while "
            "the peak was measured: no share of it is told"
        )
    return lines
