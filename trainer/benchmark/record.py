"""Writes a benchmark's figures to --result_csv and TensorBoard."""

import csv
import dataclasses
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.benchmark.allreduce import AllreduceResult
from trainer.benchmark.result import PassResult, Sweep
from trainer.config import Config
from trainer.distributed import Worker
from trainer.errors import ConfigError
from trainer.machine import environment
from trainer.process import files, installed
from trainer.telemetry.writers.background import BackgroundWriter
from trainer.telemetry.writers.event_file import EventFileWriter

Result = Sweep | AllreduceResult

_STATISTICS = ("mean", "sd", "p50", "p90", "p99", "min", "max")
_SETTINGS = ("pass", "model", "image_size", "precision", "xla", "workers")
_FIGURES = (
    *("batch_size", "burn_in", "steps", "partial", "mean_sec", "sd_sec"),
    *(f"step_time_ms_{name}" for name in _STATISTICS),
    *("images_per_sec", "images_per_sec_per_core", "build_sec", "first_run_sec"),
    *("gflops_per_image", "achieved_gflops", "made_gflops", "peak_gflops", "peak_fraction"),
    "peak_memory_bytes",
    *("bytes", "algorithm_gb_per_sec", "bus_gb_per_sec", "error"),
)
_ENVIRONMENT = (
    *("date", "host", "device", "cpu", "cores", "threads"),
    *(f"version_{name}" for name in ("python", *installed.PACKAGES)),
)
# The same columns for every benchmark, so that each fits into every file; a row may leave some
# empty.
COLUMNS = (*_SETTINGS, *_FIGURES, *_ENVIRONMENT)


def check_csv(path: str) -> None:
    """Refuses a file whose columns are others.

    Raises:
      ConfigError: the file's header is not `COLUMNS`, or the file can't be read.
    """
    if not Path(path).exists() or files.is_stream(path):
        return
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--result_csv: must be readable text, got {path} ({error})") from error
    if header is not None and tuple(header) != COLUMNS:
        raise ConfigError(
            f"--result_csv: must be a new file or one that a benchmark wrote, got {path}, whose "
            "columns differ"
        )


def append_csv(config: Config, worker: Worker, results: Mapping[str, Result]) -> None:
    """Appends a row per pass and batch size to --result_csv.

    Raises:
      OSError: the file can't be read or written.
    """
    path = Path(config.benchmark.result_csv or "")
    lines = io.StringIO()
    table = csv.DictWriter(lines, COLUMNS, extrasaction="ignore", lineterminator="\n")
    where = dataclasses.asdict(environment.describe(worker.local_rank, worker.local_size))
    where |= {f"version_{name}": version for name, version in where["versions"].items()}
    model = dataclasses.asdict(config.model)
    settings = {**model, "image_size": config.data.image_size}
    for name, result in results.items():
        for figures in _list_figures(result):
            statistics = figures.pop("step_time_ms", {})
            figures |= {f"step_time_ms_{key}": value for key, value in statistics.items()}
            table.writerow({"pass": name, "workers": 1, **settings, **figures, **where})
    header = ",".join(COLUMNS) + "\n"
    if files.is_stream(path):  # What it has, it keeps.
        files.write_bytes(path, (header + lines.getvalue()).encode())
        return
    path = Path(os.path.realpath(path))
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        files.lock(lock, path, wait=True)  # Another benchmark may be adding its rows.
        before = path.read_bytes() if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        files.write_bytes(path, (before or header.encode()) + lines.getvalue().encode())


def _list_figures(result: Result) -> list[dict[str, Any]]:
    """Returns the rows of a result; without shares of the peak that mean nothing."""
    if isinstance(result, Sweep):
        rows = [dataclasses.asdict(row) for row in result.rows]
        for row, figures in zip(result.rows, rows, strict=True):
            if row.is_disturbed:
                del figures["peak_fraction"]
        failed = [{"batch_size": size, "error": error} for size, error in result.failures.items()]
        return rows + failed
    of_all = {"workers": result.workers, "burn_in": result.burn_in, "partial": result.partial}
    return [dataclasses.asdict(row) | of_all for row in (result.gradients, *result.buffers)]


def write_events(logdir: str, results: Mapping[str, Result]) -> None:
    """Adds every timed run to TensorBoard, under `benchmark/<pass>/...`.

    In a sweep each batch size has `benchmark/<pass>/batch_<size>/...`, and the best one stands
    under `benchmark/<pass>/...` too.
    """
    writer = BackgroundWriter([EventFileWriter(logdir)])
    for name, result in results.items():
        if isinstance(result, AllreduceResult):
            _write_runs(writer, f"benchmark/{name}", result.gradients.durations_sec)
            continue
        rows = {"": result.best}
        if len(result.rows) > 1:
            rows |= {f"/batch_{row.batch_size}": row for row in result.rows}
        for suffix, row in rows.items():
            _write_runs(writer, f"benchmark/{name}{suffix}", row.durations_sec, row)
    writer.close()


def _write_runs(
    writer: BackgroundWriter,
    tag: str,
    durations_sec: Sequence[float],
    row: PassResult | None = None,
) -> None:
    for step, duration_sec in enumerate(durations_sec, start=1):
        scalars = {f"{tag}/step_time_ms": 1000 * duration_sec}
        if row is not None:
            scalars[f"{tag}/images_per_sec"] = row.batch_size / duration_sec
        writer.write(step, scalars, wall_time=time.time())
