"""Modules that scripts import and nobody types.

A script imports one of them before any package that is not Python's own. Started by a Python
without the project's packages, it then begins again with the Python of `.venv` in the repository,
or of $SLIM_HOROVOD_VENV, as if that environment had been activated.
"""

import importlib.util
import os
import sys
from pathlib import Path


def _enter_environment() -> None:
    """Replaces this process where its Python lacks the project's packages; ends it without any."""
    if importlib.util.find_spec("trainer") and importlib.util.find_spec("tensorflow"):
        return
    root = Path(__file__).resolve().parents[2]
    venv = Path(os.path.abspath(os.environ.get("SLIM_HOROVOD_VENV") or root / ".venv"))
    python = venv / "bin" / "python"
    if not python.exists() or os.path.samefile(sys.prefix, venv):
        sys.exit(f"slim-horovod: {venv} has no complete environment: scripts/setup.sh makes one")
    os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.execv(python, [str(python), *sys.argv])


_enter_environment()
