"""The files of this program, the same on all workers and hosts, and the place of plug-ins."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("flags", "models", "trainer")
_SUFFIXES = (".py", ".cc", ".h")


def list_files(package: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name, path) of each file of code of a package that lies in a folder, in order."""
    for path in sorted(path for path in folder.rglob("*.*") if path.suffix in _SUFFIXES):
        yield f"{package}/{path.relative_to(folder)}", path


def search_current_folder() -> None:
    """Adds the current folder to Python's search path, as `python -m` does: plug-ins may be there.

    The console script and `python -P` do without; the latter is left as it is.
    """
    is_wanted = not getattr(sys.flags, "safe_path", False)
    with contextlib.suppress(FileNotFoundError):  # The folder has been removed.
        if is_wanted and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
