"""Trains, evaluates, benchmarks and exports tf-slim image classifiers.

  python -m trainer --data_dir=DIR [flags]                    one process
  horovodrun -np 8 python -m trainer --data_dir=DIR [flags]   eight, one GPU each
  python -m trainer --benchmark [flags]                       one device: how fast is it?

The modes: train, evaluate, benchmark, export, predict FILE..., describe, doctor.
"""

import os
import signal
import sys
from collections.abc import Sequence

from trainer import exit_status, modes
from trainer.errors import UserError
from trainer.process import installed, keeper, launcher, own_code, settings, streams
from trainer.process.quick_exit import QuickExit

try:
    from flags import command_line
except ModuleNotFoundError as error:
    remedy = "scripts/setup.sh, then source .venv/bin/activate"
    print(f"slim-horovod: {sys.executable} has no {error.name}: {remedy}", file=sys.stderr)
    sys.exit(exit_status.MISTAKE)


def main() -> None:
    """Runs this process's command line, as the console script, and exits with its status."""
    settings.restart_with_settings()
    for descriptor in (1, 2):
        terminal = launcher.find_terminal(descriptor)
        if terminal is not None:
            streams.write_to_terminal(descriptor, terminal)
    streams.print_anything()
    own_code.search_current_folder()  # Where plug-ins may be.
    keeper.stay_behind()
    leaving = QuickExit()
    try:
        status = run(sys.argv)
    except BrokenPipeError:  # Whoever read the output has ended, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What Python flushes at its end goes there.
        status = 128 + signal.SIGPIPE
    leaving.exit(status)


def run(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit status. A user's mistake is one line."""
    try:
        config = command_line.parse(argv)
        launcher.check()
        return modes.run(config)
    except command_line.HelpRequested as help_text:
        print(__doc__ or "", help_text, sep="\n", flush=True)
        return 0
    except command_line.VersionRequested:
        print(installed.describe())
        return 0
    except UserError as error:
        if launcher.is_first() or not error.known_to_all:
            print(f"slim-horovod: {error}", file=sys.stderr, flush=True)
        return error.status
    except KeyboardInterrupt:
        print("slim-horovod: interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    main()
