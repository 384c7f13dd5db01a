"""--benchmark: measures how fast this device runs the network, and how close to its peak."""

import dataclasses
import functools
import time

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed, exit_status
from trainer.benchmark import allreduce, peak, record, sweep
from trainer.benchmark import passes as targets
from trainer.benchmark.record import Result
from trainer.benchmark.result import PassResult, Sweep, achieved_gflops, create_result
from trainer.benchmark.runs import Say, time_runs
from trainer.config import Config
from trainer.distributed import Group
from trainer.errors import ConfigError, UserError
from trainer.graph import precision
from trainer.graph.network import find_network
from trainer.inputs.dataset import AnyDataset, SyntheticDataset, open_dataset
from trainer.machine import memory, session
from trainer.process import files, launcher
from trainer.run import outputs
from trainer.safety import agreement

_PEAK_TRIES = 3

# The device's peak, GFLOP/s, by the name of the precision: it does not depend on the pass.
_peaks: dict[str, float] = {}


def run(config: Config) -> int:
    """Times the passes that --benchmark_passes names and reports them."""
    group = distributed.connect(config)
    with group.fail_together():
        _check(config, group)
    say: Say = functools.partial(print, flush=True) if group.worker.rank == 0 else _say_nothing
    measured: dict[str, Result] = {}
    is_complete = False
    try:
        with group.explain_loss():
            agreement.check_gpus(group)
            for name in config.benchmark.passes:
                measured[name] = _measure_pass(config, group, name, say)
                say(measured[name].format(name))
                if measured[name].partial:
                    raise KeyboardInterrupt  # Ctrl-C has ended the pass: it ends all.
        is_complete = True
    except KeyboardInterrupt:
        pass  # What was measured until then is recorded next.
    finally:  # What was measured before an error is worth keeping.
        _record(config, group, measured, partial=not is_complete)
    group.shutdown()
    return 0 if is_complete else exit_status.INTERRUPTED


def _say_nothing(text: str) -> None:
    del text


def _check(config: Config, group: Group) -> None:
    """Refuses what can't be measured, before minutes have gone into what can.

    Raises:
      UserError: something can't be measured.
    """
    passes = config.benchmark.passes
    if group.worker.size > 1 and passes != ("allreduce",):
        raise ConfigError(
            "--benchmark_passes: must be allreduce alone with several workers, where the others "
            f"would time devices that share a host, got {','.join(passes)}"
        )
    if group.worker.size == 1 and "allreduce" in passes:
        raise ConfigError(
            "--benchmark_passes: allreduce must have several workers: start it with "
            "horovodrun -np 2 python -m trainer --benchmark --benchmark_passes=allreduce"
        )
    if config.optimizer.accumulate_steps > 1:
        raise ConfigError(
            "--accumulate_steps: must be 1 with --benchmark, which times single batches, got "
            f"{config.optimizer.accumulate_steps}"
        )
    if config.benchmark.batch_sizes and launcher.find() is not None:
        raise ConfigError("--benchmark_batch_sizes: must not be given under a launcher")
    for name, path in (
        ("result_json", config.run.result_json),
        ("result_csv", config.benchmark.result_csv),
    ):
        if path is not None:
            files.check_writable(path, name, is_folder=False)
            files.sweep_beside(path)
    if config.benchmark.result_csv is not None:
        record.check_csv(config.benchmark.result_csv)
    if config.run.logdir is not None:
        files.check_writable(config.run.logdir, "logdir", is_folder=True)
    find_network(config.model, config.data.image_size)
    _check_data(config)


def _check_data(config: Config) -> None:
    """Tells what is not read of the data that the flags name.

    Raises:
      UserError: the input pass has no data, or they are damaged.
    """
    if "input" in config.benchmark.passes:
        dataset = _open_dataset(config, "input")
        if isinstance(dataset, SyntheticDataset):
            raise ConfigError("--data_dir: must be given with --benchmark_passes=input, got none")
        outputs.remark(*dataset.remarks)
    elif config.data.data_dir is not None or config.data.dataset not in (None, "synthetic"):
        outputs.remark(
            "--data_dir, --dataset: read by --benchmark_passes=input alone; the other passes time "
            "random images, which are on the device already"
        )


def _open_dataset(config: Config, name: str) -> AnyDataset:
    """Opens the data that the flags name for the input pass; for others, images on the device."""
    data = config.data
    if name != "input":
        data = dataclasses.replace(data, dataset="synthetic", data_dir=None)
    return open_dataset(data, num_classes=config.model.num_classes)


def _measure_pass(config: Config, group: Group, name: str, say: Say) -> Result:
    """Times a pass at all its batch sizes."""
    if name == "allreduce":
        return allreduce.measure(config, group, say)
    if config.benchmark.batch_sizes:
        return sweep.measure(config, name, say)
    try:
        with memory.limited_to_available():
            row = _measure(config, group, name, say)
    except tf.errors.OpError as error:
        if not memory.is_exhausted(error):
            raise
        raise UserError(
            f"--batch_size: must fit in memory, which {config.data.batch_size} does not for {name}",
            status=exit_status.OUT_OF_MEMORY,
        ) from error
    return Sweep((row,), partial=row.partial)


def _measure(config: Config, group: Group, name: str, say: Say) -> PassResult:
    """Builds a pass, times it, and compares it with the device's peak."""
    began = time.perf_counter()
    with tf.Graph().as_default() as pass_graph:
        tf1.set_random_seed(config.run.seed)
        target = targets.PASSES[name](config, group, _open_dataset(config, name))
        initializer = tf1.global_variables_initializer()
        pass_graph.finalize()
    if target.flops:  # Before the runs, so that after Ctrl-C nothing is left to be measured.
        _find_peak_gflops(config.model.precision)
    session_config = session.create_config(model=config.model)
    memory.reset_peak()
    with (
        tf1.Session(graph=pass_graph, config=session_config) as pass_session,
        target.stream.explain_errors(),
    ):
        pass_session.run(initializer)
        pass_session.run(target.begin)
        pass_session.run(target.stream.initializer, {target.stream.start_step: 0})
        run_pass = pass_session.make_callable(target.fetch, list(target.feeds))
        run_once = functools.partial(run_pass, *target.feeds.values())
        built = time.perf_counter()
        run_once()
        first_run_sec = time.perf_counter() - built
        durations_sec = time_runs(
            run_once,
            target.label,
            burn_in=config.benchmark.benchmark_burn_in,
            steps=config.benchmark.benchmark_steps,
            say=say,
        )
        peak_memory_bytes = memory.peak_bytes()
    achieved = achieved_gflops(target.flops, durations_sec)
    return create_result(
        durations_sec,
        label=target.label,
        batch_size=config.data.batch_size,
        flops=target.flops,
        burn_in=config.benchmark.benchmark_burn_in,
        steps=config.benchmark.benchmark_steps,
        build_sec=built - began,
        first_run_sec=first_run_sec,
        peak_gflops=_find_peak_gflops(config.model.precision, achieved) if target.flops else 0.0,
        peak_memory_bytes=peak_memory_bytes,
    )


def _find_peak_gflops(precision_name: str, achieved: float = 0.0) -> float:
    """Returns the device's highest rate in a precision, as measured so far.

    It is measured once; and again, a few times at most, while a pass has achieved more: other work
    on the machine, for instance, may have slowed the device down when its peak was measured.
    """
    dtype = precision.compute_dtype(precision_name)
    for _ in range(_PEAK_TRIES):
        if _peaks.get(precision_name, 0.0) > achieved:
            break
        measured = peak.measure_peak_gflops(dtype, session.create_config())
        _peaks[precision_name] = max(measured, _peaks.get(precision_name, 0.0))
    return _peaks[precision_name]


def _record(config: Config, group: Group, measured: dict[str, Result], *, partial: bool) -> None:
    """Writes what was measured to --result_json, --result_csv and TensorBoard; on rank 0 alone."""
    if not measured:
        return
    result = {
        "partial": partial,
        "passes": {name: part.to_json() for name, part in measured.items()},
    }
    text = f"measured: {', '.join(measured)}{'; partial' * partial}"
    outputs.report(config, group.worker, result, text=text)
    if group.worker.rank != 0:
        return
    if config.benchmark.result_csv is not None:
        record.append_csv(config, group.worker, measured)
    if config.run.logdir is not None:
        record.write_events(config.run.logdir, measured)
