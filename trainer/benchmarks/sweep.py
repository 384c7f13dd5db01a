"""A pass at several batch sizes, each in a process of its own.

A batch that does not fit can end a process: allocations fail in libraries that abort then, and the
kernel kills what outgrows a container. A row of the table does not take the others with it; and
none inherits memory, or a state of the device, from the one before.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.benchmarks.result import PassResult, Sweep
from trainer.benchmarks.runs import Say
from trainer.config import Config, UserError

_MEASURED = (0, 130)  # Exit statuses: all of it, or until Ctrl-C.


def to_flags(config: Config) -> list[str]:
    """The command line that gives `config`, without what is by default."""
    flags = [f"--mode={config.mode}"]
    for group in vars(config).values():
        if dataclasses.is_dataclass(group):
            values = [(field, getattr(group, field.name)) for field in dataclasses.fields(group)]
            flags += [f"--{f.name}={value}" for f, value in values if value != f.default]
    return flags


def _run_alone(flags: Sequence[str]) -> tuple[int, str]:
    """Runs the trainer; returns its exit status and its stderr. Ctrl-C reaches it once."""
    command = [sys.executable, "-m", "trainer", *flags]
    # In a session of its own it does not get the terminal's Ctrl-C besides.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
    return process.returncode, errors


def _explain(status: int, errors: str) -> str:
    """Why a process has no result, in one line."""
    if status < 0:
        return f"does not fit in memory, it seems (ended by {signal.Signals(-status).name})"
    lines = errors.strip().splitlines() or [f"exit status {status}"]
    return lines[-1].removeprefix("slim-horovod: ")


def _measure_alone(config: Config, name: str, size: int) -> PassResult | str:
    """Times a pass at a batch size in a process of its own: its figures, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "result.json"
        child = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, batch_size=size),
            run=dataclasses.replace(config.run, logdir=None, result_json=str(path)),
            benchmark=dataclasses.replace(
                config.benchmark,
                benchmark_passes=name,
                benchmark_batch_sizes=None,
                result_csv=None,
            ),
        )
        status, errors = _run_alone(to_flags(child))
        if status not in _MEASURED:
            return _explain(status, errors)
        if not path.exists():
            raise KeyboardInterrupt
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]["passes"][name]
    return PassResult(**row | {"durations_sec": tuple(row["durations_sec"])})


def measure(config: Config, name: str, say: Say) -> Sweep:
    """Times a pass at each of --benchmark_batch_sizes. After Ctrl-C: those that there are.

    Raises:
      UserError: none could be measured.
      KeyboardInterrupt: Ctrl-C, before any was.
    """
    rows: list[PassResult] = []
    failures: dict[int, str] = {}
    partial = False
    try:
        for size in config.benchmark.batch_sizes:
            row = _measure_alone(config, name, size)
            if isinstance(row, str):
                failures[size] = row
                say(f"{name}, batch {size}: {row}")
                continue
            rows.append(row)
            partial = row.partial
            if partial:
                break
    except KeyboardInterrupt:
        if not rows:
            raise
        partial = True
    if not rows:
        size, error = next(iter(failures.items()))
        raise UserError(f"{name}: none of --benchmark_batch_sizes could be timed; {size}: {error}")
    return Sweep(tuple(rows), failures, partial=partial)
