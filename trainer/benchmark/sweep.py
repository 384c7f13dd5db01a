"""Times a pass at several batch sizes, each in a process of its own.

A batch that does not fit in memory can end a process: some libraries abort when an allocation
fails, and the kernel kills a process that outgrows its container. In processes of their own, one
batch size does not end the others; and none inherits memory, or a state of the device, from the one
before.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

from trainer import exit_status
from trainer.benchmark.peak import DevicePeak
from trainer.benchmark.result import PassResult, Sweep
from trainer.benchmark.runs import Say
from trainer.config import Config, RunConfig, TelemetryConfig
from trainer.errors import UserError
from trainer.process.alone import Failure, explain, run_alone, to_flags


def _measure_alone(
    config: Config, name: str, size: int, device_peak: DevicePeak
) -> tuple[PassResult | Failure, bool]:
    """Times a pass at a batch size in a process of its own, which shares the device's peak.

    Returns:
      the figures, or why there are none; and whether Ctrl-C came meanwhile.

    Raises:
      KeyboardInterrupt: Ctrl-C came before there were any figures.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "result.json"
        child = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, batch_size=size),
            run=RunConfig(
                seed=config.run.seed,
                deterministic=config.run.deterministic,
                result_json=str(path),
            ),
            telemetry=TelemetryConfig(),
            benchmark=dataclasses.replace(
                config.benchmark,
                benchmark_passes=name,
                benchmark_batch_sizes=None,
                result_csv=None,
            ),
        )
        with device_peak.shared(Path(folder)) as environ:
            ended = run_alone(to_flags(child), environ)
        is_interrupted = ended.is_interrupted or ended.status == exit_status.INTERRUPTED
        if not path.exists():
            if is_interrupted:
                raise KeyboardInterrupt
            return explain(ended), False
        content = json.loads(path.read_text(encoding="utf-8"))
    return PassResult.from_json(content["result"]["passes"][name]), is_interrupted


def measure(config: Config, name: str, device_peak: DevicePeak, say: Say) -> Sweep:
    """Times a pass at each of --benchmark_batch_sizes; Ctrl-C ends it after those already timed.

    Each process prints the lines of its runs, but no table.

    Raises:
      UserError: no batch size could be timed.
      KeyboardInterrupt: Ctrl-C came before any batch size was timed.
    """
    rows: list[PassResult] = []
    failures: dict[int, Failure] = {}
    partial = False
    try:
        for size in config.benchmark.batch_sizes:
            say(f"{name}, batch {size}:")
            row, partial = _measure_alone(config, name, size, device_peak)
            if isinstance(row, Failure):
                failures[size] = row
                say("failed; the table says why")
                continue
            rows.append(row)
            if partial:
                break
    except KeyboardInterrupt:
        if not rows:
            raise
        partial = True
    if not rows:
        size, (reason, status) = next(iter(failures.items()))
        is_alike = len({failure.status for failure in failures.values()}) == 1
        raise UserError(
            f"{name}: none of --benchmark_batch_sizes could be timed; {size}: {reason}",
            status=status if is_alike else exit_status.FAILED,
        )
    reasons = {size: failure.reason for size, failure in failures.items()}
    return Sweep(tuple(rows), reasons, partial=partial)
