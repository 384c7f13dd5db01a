"""Trains, evaluates, benchmarks and exports tf-slim image classifiers.

  python -m trainer --data_dir=DIR [flags]                    one process
  horovodrun -np 8 python -m trainer --data_dir=DIR [flags]   eight, one GPU each
  python -m trainer --benchmark [flags]                       one device: how fast is it?

The modes: train, evaluate, benchmark, export, predict FILE..., describe, doctor.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from trainer.config import Config
from trainer.errors import UserError
from trainer.process import keeper, launcher, settings

try:
    from flags import command_line
except ModuleNotFoundError as error:
    sys.exit(
        f"slim-horovod: {sys.executable} has no {error.name}: "
        "scripts/setup.sh, then source .venv/bin/activate"
    )


def main() -> None:
    """The console script: runs this process's command line and exits with its status."""
    settings.restart_with_settings()
    keeper.stay_behind()
    sys.exit(run(sys.argv))


def run(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status. A user's mistake is one line and status 1."""
    try:
        return run_mode(command_line.parse(argv))
    except command_line.HelpRequested as help_text:
        print(__doc__, help_text, sep="\n")
        return 0
    except UserError as error:
        if launcher.is_first() or not error.known_to_all:
            print(f"slim-horovod: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("slim-horovod: interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


@contextlib.contextmanager
def _without_start_up_notes() -> Iterator[None]:
    """Sieves what TensorFlow's libraries say while they are loaded, whatever the log level.

    Each worker would say it before its first line of ours. All else that is written to the standard
    error meanwhile comes through, even from a library that brings the process down.
    """
    errors = os.dup(2)
    sieve = subprocess.Popen(
        ["grep", "--invert-match", "--extended-regexp", "^(I0000 |WARNING: All log messages)"],
        stdin=subprocess.PIPE,
        stdout=errors,
    )
    with sieve:
        os.dup2(sieve.stdin.fileno(), 2)  # type: ignore[union-attr]  # It is a pipe.
        try:
            yield
        finally:
            os.dup2(errors, 2)
            os.close(errors)


def run_mode(config: Config) -> int:
    """Runs the mode that `config` asks for; returns the exit status."""
    if config.model.xla:
        # XLA compiles for CPUs only where this says so; TensorFlow reads it once.
        given = os.environ.get("TF_XLA_FLAGS", "")
        os.environ["TF_XLA_FLAGS"] = f"{given} --tf_xla_cpu_global_jit".strip()
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        # Without the driver's device file, that there is no GPU is no error.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2" if settings.has_gpu() else "3"
        with _without_start_up_notes():
            importlib.import_module("tensorflow")
    return importlib.import_module(f"trainer.modes.{config.mode}").run(config)


if __name__ == "__main__":
    main()
