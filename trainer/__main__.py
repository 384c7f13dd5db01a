"""Trains, evaluates, benchmarks and exports tf-slim image classifiers.

  python -m trainer --data_dir=DIR [flags]                    one process
  horovodrun -np 8 python -m trainer --data_dir=DIR [flags]   eight, one GPU each
  python -m trainer --benchmark [flags]                       one device: how fast is it?

The modes: train, evaluate, benchmark, export, predict FILE..., describe, doctor.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from flags import command_line
from trainer import launcher
from trainer.config import Config, UserError


def main() -> None:
    """The console script: runs this process's command line and exits with its status."""
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


def run_mode(config: Config) -> int:
    """Runs the mode that `config` asks for; returns the exit status."""
    # TensorFlow's start-up notes would come before every line of ours, once per worker; without
    # the driver's device file, so would its complaint that there is no GPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if os.path.exists("/dev/nvidiactl") else "3")
    return importlib.import_module(f"trainer.{config.mode}").run(config)


if __name__ == "__main__":
    main()
