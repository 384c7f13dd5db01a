"""Runs what a broken installation can bring down in processes of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import NamedTuple

TIMEOUT_SEC = 180.0


class Ended(NamedTuple):
    """The end of a process: its exit status, its stdout and its stderr."""

    status: int
    output: str
    errors: str


def run_python(
    *arguments: str,
    launcher: tuple[str, ...] = (),
    timeout_sec: float = TIMEOUT_SEC,
) -> Ended:
    """Runs this Python with some arguments, in processes that all end within `timeout_sec`."""
    process = subprocess.Popen(
        [*launcher, sys.executable, *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_sec)
    except subprocess.TimeoutExpired:
        _end(process)
        return Ended(1, "", f"no end after {timeout_sec:g} s")
    except KeyboardInterrupt:
        _end(process)
        raise
    return Ended(process.returncode, output, errors)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends horovodrun, which ends its workers on SIGTERM; kills all where it does not."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
            return


def how_ended(ended: Ended) -> str:
    """Returns the signal that ended a process, or its last line, likely an error, or its status."""
    if ended.status < 0:
        return signal.Signals(-ended.status).name
    lines = (ended.errors or ended.output).strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {ended.status}"
