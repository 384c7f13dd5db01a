"""Runs a command line of this program in a process of its own, and says why it failed."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainer import exit_status
from trainer.config import Config
from trainer.process.keeper import unless_nohup


def to_flags(config: Config) -> list[str]:
    """Returns the command line that gives `config`, without flags that have their default value."""
    changed = [flag for flag in config.flags() if flag.value != flag.default]
    return [f"--mode={config.mode}", *(f"--{flag.name}={flag.value}" for flag in changed)]


class Ended(NamedTuple):
    """The end of a process: its exit status, its stderr, and whether Ctrl-C came meanwhile."""

    status: int
    errors: str
    is_interrupted: bool


def _leave(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def run_alone(flags: Sequence[str], environ: Mapping[str, str], *, quiet: bool = False) -> Ended:
    """Runs the trainer in a process that gets Ctrl-C once, and does not outlive this process.

    Args:
      flags: the command line.
      environ: environment variables that the process has besides this process's.
      quiet: whether what it prints on standard output is left out.
    """
    command = [sys.executable, "-m", "trainer", *flags]
    is_interrupted = False
    asked = unless_nohup((signal.SIGTERM, signal.SIGHUP))
    before = {number: signal.signal(number, _leave) for number in asked}
    # In a session of its own the process does not get the terminal's Ctrl-C as well.
    with subprocess.Popen(
        command,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate()
        except KeyboardInterrupt:
            is_interrupted = True
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            process.kill()  # Does nothing where it has ended.
            for number, handler in before.items():
                signal.signal(number, handler)
    return Ended(process.returncode, errors, is_interrupted)


class Failure(NamedTuple):
    """The reason why a process has no result: in one line, and as an exit status."""

    reason: str
    status: int


def explain(ended: Ended) -> Failure:
    """Returns why a process failed: by its last line, or by the signal that ended it."""
    if ended.status < 0:
        name = signal.Signals(-ended.status).name
        reason = f"does not fit in memory, it seems (ended by {name})"
        return Failure(reason, exit_status.OUT_OF_MEMORY)
    lines = ended.errors.strip().splitlines() or [f"exit status {ended.status}"]
    return Failure(lines[-1].removeprefix("slim-horovod: "), ended.status)
