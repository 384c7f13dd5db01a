"""What every script begins and ends with; imported before all that is not Python's own.

Started by a Python without the project's packages, a script begins again with the Python of `.venv`
in the repository, or of $SLIM_HOROVOD_VENV, as if that environment had been activated.
"""

import argparse
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def _enter_environment() -> None:
    if importlib.util.find_spec("trainer") and importlib.util.find_spec("tensorflow"):
        return
    root = Path(__file__).resolve().parent.parent
    venv = Path(os.path.abspath(os.environ.get("SLIM_HOROVOD_VENV") or root / ".venv"))
    python = venv / "bin" / "python"
    if not python.exists() or os.path.samefile(sys.prefix, venv):
        sys.exit(f"slim-horovod: {venv} has no complete environment: scripts/setup.sh makes one")
    os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.execv(python, [str(python), *sys.argv])


_enter_environment()

from trainer.errors import UserError  # noqa: E402


def at_least(minimum: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """A type for argparse: finite numbers of this kind that are not below `minimum`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text!r}")
        return value

    return parse


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script and exits with what it returns; what stands in its way is one line."""
    name = Path(main.__code__.co_filename).name
    try:
        sys.exit(main())
    except (UserError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
