"""--benchmark: measures how fast this device runs the network, and how close to its peak."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed, exit_status
from trainer.benchmark import allreduce, record, sweep
from trainer.benchmark import passes as targets
from trainer.benchmark.peak import DevicePeak
from trainer.benchmark.record import Result
from trainer.benchmark.result import PassResult, Sweep, achieved_gflops, create_result
from trainer.benchmark.runs import Say, time_runs
from trainer.config import Config
from trainer.cpu_kernels import library
from trainer.distributed import Group
from trainer.errors import ConfigError, UserError
from trainer.graph.initial_values import build_initializer
from trainer.graph.network import find_network
from trainer.inputs.dataset import AnyDataset, SyntheticDataset, open_dataset
from trainer.machine import memory, session
from trainer.machine.load import LoadMeter
from trainer.process import files, host_cores, launcher
from trainer.run import outputs
from trainer.safety import agreement


def run(config: Config) -> int:
    """Times the passes that --benchmark_passes names and reports them."""
    group = distributed.connect(config)
    with group.fail_together():
        _check(config, group)
    say: Say = functools.partial(print, flush=True) if group.worker.rank == 0 else _say_nothing
    device_peak = DevicePeak(config.model.precision)
    measured: dict[str, Result] = {}
    is_complete = False
    try:
        with group.explain_loss():
            agreement.check_gpus(group)
            for name in config.benchmark.passes:
                measured[name] = _measure_pass(config, group, name, device_peak, say)
                if measured[name].partial:
                    raise KeyboardInterrupt  # Ctrl-C has ended the pass: it ends all.
        is_complete = True
    except KeyboardInterrupt:
        pass  # What was measured until then is recorded next.
    finally:  # What was measured before an error is worth keeping.
        # All tables stand at the end, since they share the peak, which a later pass may raise.
        for name, result in measured.items():
            if isinstance(result, Sweep):
                measured[name] = result.with_peak(device_peak.known)
        if not device_peak.is_shared:
            _show(measured, say, partial=not is_complete)
        _record(config, group, measured, partial=not is_complete)
    group.shutdown()
    return 0 if is_complete else exit_status.INTERRUPTED


def _show(measured: Mapping[str, Result], say: Say, *, partial: bool) -> None:
    """Prints the tables, if there are any."""
    for name, result in measured.items():
        say(result.format(name))
    if measured and partial:
        say("partial: it ended before all was timed")


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


def _measure_pass(
    config: Config, group: Group, name: str, device_peak: DevicePeak, say: Say
) -> Result:
    """Times a pass at all its batch sizes."""
    if name == "allreduce":
        return allreduce.measure(config, group, say)
    if config.benchmark.batch_sizes:
        return sweep.measure(config, name, device_peak, say)
    try:
        with memory.limited_to_available():
            row = _measure(config, group, name, device_peak, say)
    except tf.errors.OpError as error:
        if not memory.is_exhausted(error):
            raise
        raise UserError(
            f"--batch_size: must fit in memory, which {config.data.batch_size} does not for {name}",
            status=exit_status.OUT_OF_MEMORY,
        ) from error
    return Sweep((row,), partial=row.partial)


def _measure(
    config: Config, group: Group, name: str, device_peak: DevicePeak, say: Say
) -> PassResult:
    """Builds a pass, times it, and compares it with the device's peak."""
    if name != "input":  # Before the runs, so that after Ctrl-C nothing is left to be measured.
        device_peak.measure()
    began = time.perf_counter()
    with tf.Graph().as_default() as pass_graph:
        tf1.set_random_seed(config.run.seed)
        target = targets.PASSES[name](config, group, _open_dataset(config, name))
        initializer = build_initializer()
        pass_graph.finalize()
    with (
        pass_graph.as_default(),
        session.open_session(model=config.model) as pass_session,
        target.stream.explain_errors(),
    ):
        memory.reset_peak()
        pass_session.run(initializer)
        pass_session.run(target.begin)
        pass_session.run(target.stream.initializer, {target.stream.start_step: 0})
        run_pass = pass_session.make_callable(target.fetch, list(target.feeds))
        run_once = functools.partial(run_pass, *target.feeds.values())
        built = time.perf_counter()
        left_out = library.multiply_adds_left_out()
        run_once()
        first_run_sec = time.perf_counter() - built
        left_out = library.multiply_adds_left_out() - left_out
        load = LoadMeter(host_cores.available_cores())
        durations_sec = time_runs(
            run_once,
            target.label,
            burn_in=config.benchmark.benchmark_burn_in,
            steps=config.benchmark.benchmark_steps,
            say=say,
        )
        others_share = load.others_share()
        peak_memory_bytes = memory.peak_bytes()
    is_on_cpu = name == "input" or session.step_device() == "/cpu:0"
    flops_left_out = 2 * left_out - target.flops_again if is_on_cpu else None
    made = achieved_gflops(target.flops - (flops_left_out or 0), durations_sec)
    return create_result(
        durations_sec,
        label=target.label,
        batch_size=config.data.batch_size,
        flops=target.flops,
        flops_left_out=flops_left_out,
        burn_in=config.benchmark.benchmark_burn_in,
        steps=config.benchmark.benchmark_steps,
        build_sec=built - began,
        first_run_sec=first_run_sec,
        peak=device_peak.measure(made) if target.flops else None,
        others_share=others_share if is_on_cpu else None,
        peak_memory_bytes=peak_memory_bytes,
    )


def _record(config: Config, group: Group, measured: dict[str, Result], *, partial: bool) -> None:
    """Writes what was measured to --result_json, --result_csv and TensorBoard; on rank 0 alone."""
    if not measured:
        return
    result = {
        "partial": partial,
        "passes": {name: part.to_json() for name, part in measured.items()},
    }
    with contextlib.ExitStack() as stack:  # Where one can't be written, the others are.
        stack.callback(outputs.write_result, config, group.worker, result)
        if group.worker.rank != 0:
            return
        if config.benchmark.result_csv is not None:
            stack.callback(_append_csv, config, group, measured)
        if config.run.logdir is not None:
            stack.callback(record.write_events, config.run.logdir, measured)


def _append_csv(config: Config, group: Group, measured: dict[str, Result]) -> None:
    try:
        record.append_csv(config, group.worker, measured)
    except OSError as error:
        raise outputs.unwritable("result_csv", config.benchmark.result_csv or "", error) from error
