"""Imported by scripts before what they need: goes on in the project's environment.

A script that is started by a Python without the project's packages begins again with the Python of
`.venv` in the repository, or of $SLIM_HOROVOD_VENV, as if that environment had been activated.
"""

import importlib.util
import os
import sys
from pathlib import Path


def enter() -> None:
    """Returns where the packages are at hand; elsewhere the script begins again where they are."""
    if importlib.util.find_spec("trainer") and importlib.util.find_spec("tensorflow"):
        return
    root = Path(__file__).resolve().parent.parent
    venv = Path(os.environ.get("SLIM_HOROVOD_VENV", root / ".venv")).absolute()
    python = venv / "bin" / "python"
    if Path(sys.prefix) == venv or not python.exists():
        sys.exit(f"slim-horovod: no environment in {venv}: scripts/setup.sh makes one")
    os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.execv(python, [str(python), *sys.argv])


enter()
