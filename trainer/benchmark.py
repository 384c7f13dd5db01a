"""--benchmark: how fast this device runs the network, and how far its limit is."""

import csv
import dataclasses
import datetime
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import (
    allreduce_benchmark,
    atomic_file,
    benchmark_graphs,
    distributed,
    environment,
    graph,
    memory,
    peak,
    precision,
    results,
    session,
    timing,
)
from trainer.config import Config, ConfigError, UserError
from trainer.distributed import Group
from trainer.inputs.dataset import open_dataset
from trainer.telemetry.writers import Writer, create_writer

# Two measurements of the same rate differ by this much on a quiet machine.
_PEAK_TOLERANCE = 1.02

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class PassResult:
    """The figures of a pass at a batch size.

    Attributes:
      batch_size: images per run.
      burn_in: runs before the timed ones.
      steps: timed runs.
      partial: whether it was interrupted before the last of them.
      mean_sec, sd_sec: of a run; the standard deviation is the population's.
      step_time_ms: all statistics of the runs.
      images_per_sec: all images / all seconds.
      build_sec: making the graph and its variables.
      first_run_sec: the first run: optimization and compilation of the graph, and the run.
      images_per_sec_per_core: images_per_sec / the cores that this process may use.
      gflops_per_image: of convolutions and matrix products, from the graph's shapes; 0 for input.
      achieved_gflops: GFLOP per second.
      peak_gflops: the most that this device was seen to do in this precision; 0 for input.
      peak_fraction: achieved / peak; 0 for input.
      peak_memory_bytes: of the device's allocator on a GPU, of the resident set on a CPU.
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


def time_runs(
    take: Callable[[], object],
    label: str,
    *,
    burn_in: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
    say: Say = print,
) -> list[float]:
    """Times runs, and prints what the notebook's `time_tensorflow_run` printed.

    Args:
      take: makes a run and returns when it is over.
      label: of the closing line, `<label> across <steps> steps, <mean> +/- <sd> sec / batch`.
      burn_in: runs before the timed ones.
      steps: timed runs.
      clock: tells seconds.
      say: prints a line.

    Returns:
      each timed run's duration, seconds. Fewer than `steps` where Ctrl-C ended it; at least one.
    """
    durations_sec: list[float] = []
    step_clock = timing.StepClock(clock)
    try:
        for _ in range(burn_in):
            take()
        step_clock.start()
        for step in range(1, steps + 1):
            take()
            durations_sec.append(step_clock.finish_step())
            if step % 10 == 0:
                with step_clock.pause():
                    say(f"{_now()}: step {step}, duration = {durations_sec[-1]:.3f}")
    except KeyboardInterrupt:
        if not durations_sec:
            raise
        say(f"interrupted: what follows is partial, {len(durations_sec)} of {steps} steps")
    summary = timing.summarize(durations_sec)
    say(
        f"{_now()}: {label} across {len(durations_sec)} steps, "
        f"{summary.mean / 1000:.3f} +/- {summary.sd / 1000:.3f} sec / batch"
    )
    return durations_sec


def run(config: Config) -> int:
    """Times the passes that --benchmark_passes names and reports them."""
    group = distributed.connect()
    with group.fail_together():
        _check(config, group)
    say: Say = print if group.worker.rank == 0 else _say_nothing
    writer = create_writer(config.run.logdir, rank=group.worker.rank)
    rows: dict[str, dict[str, Any]] = {}
    partial = False
    try:
        for name in config.benchmark.passes:
            if name == "allreduce":
                rows[name] = allreduce_benchmark.measure(config, group, say)
            else:
                rows[name] = _sweep(config, group, name, say, writer)
            partial = partial or rows[name]["partial"]
            if partial:
                break
    except KeyboardInterrupt:
        partial = True
    writer.close()
    text = f"measured: {', '.join(rows) or 'nothing'}{', interrupted: partial' * partial}"
    _record(config, group, rows, text)
    group.shutdown()
    return 130 if partial else 0


def _now() -> datetime.datetime:
    return datetime.datetime.now()


def _say_nothing(text: str) -> None:
    del text


def _check(config: Config, group: Group) -> None:
    """Refuses what can't be measured."""
    passes = config.benchmark.passes
    if group.worker.size > 1 and passes != ("allreduce",):
        raise ConfigError(
            "--benchmark_passes: must be allreduce alone under a launcher, where the others would "
            f"time devices that share a host, got {','.join(passes)}"
        )
    for name, path in (
        ("result_json", config.run.result_json),
        ("result_csv", config.benchmark.result_csv),
    ):
        if path is not None:
            atomic_file.check_writable(path, name, is_folder=False)
    if config.run.logdir is not None:
        atomic_file.check_writable(config.run.logdir, "logdir", is_folder=True)
    graph.find_network(config.model, config.data.image_size)


def _sweep(config: Config, group: Group, name: str, say: Say, writer: Writer) -> dict[str, Any]:
    """Times a pass at each batch size; returns the best row, with all of them under `sweep`."""
    sizes = config.benchmark.batch_sizes or (config.data.batch_size,)
    measured: list[PassResult] = []
    failed: dict[int, str] = {}
    for size in sizes:
        try:
            sized = dataclasses.replace(
                config, data=dataclasses.replace(config.data, batch_size=size)
            )
            measured.append(_measure(sized, group, name, say, writer))
        except tf.errors.ResourceExhaustedError:
            failed[size] = "does not fit in memory"
            say(f"{name}: a batch of {size} does not fit in memory")
        if measured and measured[-1].partial:
            break
    if not measured:
        raise UserError(
            f"--batch_size: must fit in memory, got {', '.join(map(str, sizes))} for {name}"
        )
    best = max(measured, key=lambda row: row.images_per_sec)
    say(format_rows(name, measured, best))
    result = dataclasses.asdict(best)
    result["partial"] = any(row.partial for row in measured)
    if config.benchmark.batch_sizes:
        result["sweep"] = [dataclasses.asdict(row) for row in measured] + [
            {"batch_size": size, "error": error} for size, error in failed.items()
        ]
    return result


def _measure(config: Config, group: Group, name: str, say: Say, writer: Writer) -> PassResult:
    """Builds a pass, times it, and sets it against the device's peak."""
    began = time.perf_counter()
    with tf.Graph().as_default() as pass_graph:
        tf1.set_random_seed(config.run.seed)
        target = benchmark_graphs.PASSES[name](config, group, _open_dataset(config, name))
        initializer = tf1.global_variables_initializer()
        pass_graph.finalize()
    session_config = session.create_config(xla=config.model.xla)
    memory.reset_peak()
    with tf1.Session(graph=pass_graph, config=session_config) as pass_session:
        for operation, feeds in ((initializer, {}), *target.initializers):
            pass_session.run(operation, feeds)
        run_pass = pass_session.make_callable(target.fetch, list(target.feeds))
        values = list(target.feeds.values())
        built = time.perf_counter()
        run_pass(*values)
        first_run_sec = time.perf_counter() - built
        durations_sec = time_runs(
            lambda: run_pass(*values),
            target.label,
            burn_in=max(0, config.benchmark.benchmark_burn_in - 1),  # One was the first run.
            steps=config.benchmark.benchmark_steps,
            say=say,
        )
    peak_memory_bytes = memory.peak_bytes()
    tag = f"benchmark/{name}"
    if config.benchmark.batch_sizes:
        tag += f"/batch_{target.images}"
    for step, duration_sec in enumerate(durations_sec, start=1):
        scalars = {
            f"{tag}/step_time_ms": 1000 * duration_sec,
            f"{tag}/images_per_sec": target.images / duration_sec,
        }
        writer.write(step, scalars, wall_time=time.time())
    limit = _peak_gflops(config.model.precision) if target.flops else 0.0
    return summarize(
        config,
        target,
        durations_sec,
        build_sec=built - began,
        first_run_sec=first_run_sec,
        peak_gflops=limit,
        peak_memory_bytes=peak_memory_bytes,
    )


def _open_dataset(config: Config, name: str) -> graph.AnyDataset:
    """The data that the flags name for the input pass; for the others, images on the device."""
    data = config.data
    if name != "input":
        data = dataclasses.replace(data, dataset="synthetic", data_dir=None)
    return open_dataset(data, num_classes=config.model.num_classes)


@functools.cache
def _peak_gflops(precision_name: str) -> float:
    dtype = precision.compute_dtype(precision_name)
    return peak.measure_peak_gflops(dtype, session.create_config())


def summarize(
    config: Config,
    target: benchmark_graphs.Target,
    durations_sec: Sequence[float],
    *,
    build_sec: float,
    first_run_sec: float,
    peak_gflops: float,
    peak_memory_bytes: int,
) -> PassResult:
    """The figures of a pass.

    Raises:
      UserError: the pass seems to be faster than the device can be.
    """
    statistics = timing.summarize(durations_sec)
    images_per_sec = timing.images_per_sec(target.images, durations_sec)
    gflops_per_image = target.flops / target.images / 1e9
    achieved = gflops_per_image * images_per_sec
    if target.flops and achieved > _PEAK_TOLERANCE * peak_gflops:
        raise UserError(
            f"{target.label}: {achieved:.0f} GFLOP/s is above the measured peak of this device, "
            f"{peak_gflops:.0f} GFLOP/s: the measurement is wrong; do not use it"
        )
    return PassResult(
        batch_size=target.images,
        burn_in=config.benchmark.benchmark_burn_in,
        steps=len(durations_sec),
        partial=len(durations_sec) < config.benchmark.benchmark_steps,
        mean_sec=statistics.mean / 1000,
        sd_sec=statistics.sd / 1000,
        step_time_ms=statistics._asdict(),
        images_per_sec=images_per_sec,
        images_per_sec_per_core=images_per_sec / session.available_cores(),
        build_sec=build_sec,
        first_run_sec=first_run_sec,
        gflops_per_image=gflops_per_image,
        achieved_gflops=achieved,
        peak_gflops=peak_gflops,
        peak_fraction=achieved / peak_gflops if peak_gflops else 0.0,
        peak_memory_bytes=peak_memory_bytes,
    )


def format_rows(name: str, rows: Sequence[PassResult], best: PassResult) -> str:
    """A table of a pass, a row per batch size."""
    lines = [
        f"{name}: milliseconds per run (sd: the population's, of the runs), images per second",
        f"{'batch':>6}{'mean':>10}{'sd':>9}{'p50':>10}{'p90':>10}{'p99':>10}{'min':>10}{'max':>10}"
        f"{'images/s':>11}{'/core':>9}{'GFLOP/s':>10}{'of peak':>9}{'memory':>10}",
    ]
    for row in rows:
        times = row.step_time_ms
        columns = "".join(f"{times[key]:10.2f}" for key in ("p50", "p90", "p99", "min", "max"))
        lines.append(
            f"{row.batch_size:6}{times['mean']:10.2f}{times['sd']:9.2f}{columns}"
            f"{row.images_per_sec:11.2f}{row.images_per_sec_per_core:9.2f}"
            f"{row.achieved_gflops:10.1f}{row.peak_fraction:9.3f}"
            f"{row.peak_memory_bytes / 2**20:6.0f} MiB"
        )
    if best.gflops_per_image:
        lines.append(
            f"{best.gflops_per_image:.2f} GFLOP per image (2 x multiply-adds of convolutions); "
            f"measured peak {best.peak_gflops:.0f} GFLOP/s"
        )
    lines.append(
        f"graph built in {best.build_sec:.1f} s, first run (optimization, compilation) "
        f"{best.first_run_sec:.1f} s"
    )
    if len(rows) > 1:
        lines.append(f"best: batch {best.batch_size}, {best.images_per_sec:.2f} images/s")
    return "\n".join(lines)


def _record(config: Config, group: Group, rows: dict[str, dict[str, Any]], text: str) -> None:
    """Writes the result to --result_json and --result_csv."""
    result = {"passes": rows}
    results.report(config, group.worker, result, text=text)
    if config.benchmark.result_csv is None or group.worker.rank != 0:
        return
    where = dataclasses.asdict(environment.describe())
    where |= {f"version_{name}": version for name, version in where.pop("versions").items()}
    asked = {
        "model": config.model.model,
        "image_size": config.data.image_size,
        "precision": config.model.precision,
        "xla": config.model.xla,
    }
    for name, row in rows.items():
        for figures in row.get("sweep", [row]):
            flat = {key: value for key, value in figures.items() if not isinstance(value, list)}
            flat |= {f"step_time_{key}_ms": v for key, v in flat.pop("step_time_ms", {}).items()}
            _append_row(config.benchmark.result_csv, {"pass": name, **asked, **flat, **where})


def _append_row(path: str, row: dict[str, Any]) -> None:
    """Appends a row to a CSV file, under the header that is there; a new file gets one.

    Raises:
      UserError: the file has other columns.
    """
    columns = list(row)
    is_new = not Path(path).exists() or not Path(path).stat().st_size
    if not is_new:
        with open(path, encoding="utf-8", newline="") as file:
            columns = next(csv.reader(file))
        unknown = [name for name in row if name not in columns]
        if unknown:
            raise UserError(f"--result_csv: {path} has no column {unknown[0]}: name a new file")
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
