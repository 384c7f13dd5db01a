"""Comparisons of runs by their numbers of workers: weak and strong scaling. For scaling.py."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared import run_logs
from shared.run_logs import Curve

import numpy as np
import numpy.typing as npt

from trainer import timing
from trainer.errors import UserError
from trainer.process import json_files
from trainer.telemetry.writers import metrics_lines

# What is known of each step of a run.
TAGS = tuple(
    f"perf/{name}"
    for name in (
        *("step_time_ms", "images_per_sec", "images_per_sec_per_worker", "data_wait_ms"),
        *("compute_ms", "fastest_worker_step_ms", "slowest_worker_step_ms"),
    )
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Shares of the time of a run's steps, which add up to 1; and its workers' times.

    Attributes:
      data: the share in which rank 0 waits for its input.
      compute: the share from then on until its gradients are ready.
      communication: the rest: the wait for the slowest, the all-reduce, and the update, which one
        worker has, too.
      fastest_ms, middle_ms, slowest_ms: time of the fastest, the median and the slowest worker
        before it waits for the others; medians over the steps.
    """

    data: float
    compute: float
    communication: float
    fastest_ms: float
    middle_ms: float
    slowest_ms: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
      workers: number of workers.
      global_batch_size: images of a step over all workers.
      images_per_sec: all images by all seconds, without the steps to warm up.
      parts: the shares of the time; None where the run has no metrics.
    """

    workers: int
    global_batch_size: int
    images_per_sec: float
    parts: Parts | None = None


class Row(NamedTuple):
    """The runs of a number of workers in a series.

    Attributes:
      workers: number of workers.
      batch_size: images of a step of one worker.
      runs: number of runs.
      images_per_sec: median over the runs.
      speed_up: images per second as a multiple of one worker's.
      efficiency: speed-up by the number of workers.
      parts: those of the run in the middle.
    """

    workers: int
    batch_size: int
    runs: int
    images_per_sec: float
    speed_up: float
    efficiency: float
    parts: Parts | None


def read_run(path: Path) -> Run:
    """Reads a run from its folder, or from its --result_json.

    Raises:
      UserError: there is no training run of this kind.
    """
    if path.is_dir():
        return run_of_curves(run_logs.read_curves(path, TAGS))
    try:
        content = json_files.build(dict[str, Any], json_files.read(path))
        result = content["result"]
        run = Run(
            int(result["workers"]),
            int(result["global_batch_size"]),
            float(result["images_per_sec"]),
        )
    except (OSError, json_files.FormatError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: must be the --result_json of training ({error})") from error
    logdir = content.get("config", {}).get("run", {}).get("logdir")
    if logdir is None or not (Path(logdir) / metrics_lines.NAME).exists():
        return run
    try:
        curves = run_logs.read_curves(Path(logdir), TAGS)
    except UserError:  # As of a version that logged other parts.
        return run
    return dataclasses.replace(run, parts=run_of_curves(curves).parts)


def run_of_curves(curves: Mapping[str, Curve]) -> Run:
    """Returns the run that has written these curves, by tag; `TAGS` among them."""
    steps_ms = curves["perf/step_time_ms"].values
    timed = slice(timing.warmup_steps(len(steps_ms)), None)

    def of(tag: str) -> npt.NDArray[Any]:
        return curves[tag].values[timed]

    rates, of_worker = of("perf/images_per_sec"), of("perf/images_per_sec_per_worker")
    steps_ms = of("perf/step_time_ms")
    total_ms = float(steps_ms.sum())
    data, compute = (
        float(of(f"perf/{part}_ms").sum()) / total_ms for part in ("data_wait", "compute")
    )
    workers = round(float(np.median(rates / of_worker)))
    fastest, slowest = "perf/fastest_worker_step_ms", "perf/slowest_worker_step_ms"
    middle = fastest if workers == 1 else "perf/median_worker_step_ms"
    images = float((rates * steps_ms).sum()) / 1000
    return Run(
        workers=workers,
        global_batch_size=round(images / len(steps_ms)),
        images_per_sec=1000 * images / total_ms,
        parts=Parts(
            data=data,
            compute=compute,
            communication=1 - data - compute,
            fastest_ms=float(np.median(of(fastest))),
            middle_ms=float(np.median(of(middle))) if middle in curves else float("nan"),
            slowest_ms=float(np.median(of(slowest))),
        ),
    )


def list_series(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Sorts runs into series of weak scaling (one batch per worker) and of strong (one in all).

    Each series is compared with its run of the fewest workers.

    Raises:
      UserError: no two runs differ in the number of workers alone.
    """
    series: dict[str, list[Row]] = {}
    for kind in ("weak", "strong"):
        groups: dict[int, list[Run]] = {}
        for run in runs:
            size = run.global_batch_size // (run.workers if kind == "weak" else 1)
            groups.setdefault(size, []).append(run)
        for size, members in sorted(groups.items()):
            if len({run.workers for run in members}) > 1:
                what = "images per worker" if kind == "weak" else "images over all workers"
                series[f"{kind} scaling, {size} {what}"] = _rows_of(members)
    if not series:
        raise UserError(
            "runs: must have one batch size, per worker or over all, with several numbers of "
            f"workers; got {_describe(runs)}"
        )
    return series


def _describe(runs: Iterable[Run]) -> str:
    return ", ".join(f"{run.workers} x {run.global_batch_size // run.workers}" for run in runs)


def _rows_of(runs: Sequence[Run]) -> list[Row]:
    rows: list[Row] = []
    for workers in sorted({run.workers for run in runs}):
        of_workers = sorted(
            (run for run in runs if run.workers == workers), key=lambda run: run.images_per_sec
        )
        rate = statistics.median(run.images_per_sec for run in of_workers)
        base = rows[0].images_per_sec / rows[0].workers if rows else rate / workers
        middle = of_workers[len(of_workers) // 2]
        rows.append(
            Row(
                workers=workers,
                batch_size=middle.global_batch_size // workers,
                runs=len(of_workers),
                images_per_sec=rate,
                speed_up=rate / base,
                efficiency=rate / base / workers,
                parts=middle.parts,
            )
        )
    return rows


def format_series(series: Mapping[str, Sequence[Row]]) -> str:
    """Returns the tables of all series as text."""
    lines = []
    for title, rows in series.items():
        lines += [
            title,
            f"{'workers':>8}{'runs':>5}{'images/s':>10}{'speed-up':>9}{'efficiency':>11}"
            f"{'data':>7}{'compute':>8}{'comm.+update':>13}{'worker ms: min':>16}{'median':>9}"
            f"{'max':>9}",
        ]
        for row in rows:
            line = (
                f"{row.workers:8}{row.runs:5}{row.images_per_sec:10.2f}{row.speed_up:9.2f}"
                f"{100 * row.efficiency:10.1f}%"
            )
            parts = row.parts
            if parts is not None:
                shares = (parts.data, parts.compute, parts.communication)
                line += "".join(
                    f"{100 * share:{width}.1f}%"
                    for share, width in zip(shares, (6, 7, 12), strict=True)
                )
                line += f"{parts.fastest_ms:16.1f}{parts.middle_ms:9.1f}{parts.slowest_ms:9.1f}"
            lines.append(line)
    return "\n".join(lines)
