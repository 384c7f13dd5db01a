"""The files of this program, which must be the same on all workers and hosts."""

from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("flags", "models", "trainer")
_SUFFIXES = (".py", ".cc", ".h")


def list_files(package: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name, path) of each file of code of a package that lies in a folder, in order."""
    for path in sorted(path for path in folder.rglob("*.*") if path.suffix in _SUFFIXES):
        yield f"{package}/{path.relative_to(folder)}", path
