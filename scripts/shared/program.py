"""Arguments that scripts have in common, and the exit of each."""

import argparse
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from trainer import exit_status
from trainer.errors import UserError
from trainer.inputs.sources import storage
from trainer.process import streams


def at_least(minimum: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """Returns a type for argparse: finite numbers of this kind that are not below `minimum`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text!r}")
        return value

    return parse


def whole_numbers(text: str) -> tuple[int, ...]:
    """Returns the rising whole numbers of a list with commas. For argparse."""
    try:
        numbers = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"must be whole numbers from 1, as 1,2,4, got {text!r}")
    return numbers


def path(text: str) -> Path:
    """Returns a local path with the home folder, which shells leave where a `~` follows an `=`.

    For argparse.
    """
    if storage.is_remote(text):
        raise argparse.ArgumentTypeError(f"must be in a local file system, got {text!r}")
    return Path(os.path.expanduser(text))


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script and exits with what it returns; what stands in its way is one line."""
    streams.print_anything()
    name = Path(main.__code__.co_filename).name
    try:
        status = main()
        if sys.stdout is not None:  # As where it was closed by `>&-`.
            sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # Whoever read the output has ended, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What Python flushes at its end goes there.
        sys.exit(128 + signal.SIGPIPE)
    except (UserError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(exit_status.INTERRUPTED)
