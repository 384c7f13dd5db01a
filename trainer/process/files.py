"""Files that are there whole or not at all."""

import os
from pathlib import Path

from trainer.errors import UserError


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file aside, syncs it, and renames it into its place.

    Args:
      path: the file; its folder is made where it is missing.
      content: all of it.

    Raises:
      OSError: it could not be written; what was there before still is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        sync(aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | os.PathLike[str], flag_name: str, *, is_folder: bool) -> None:
    """Finds out before a run, not after it, that its results have a place.

    Args:
      path: the folder to write into, made where it is missing, or the file to write.
      flag_name: the flag that named it.
      is_folder: which of the two it is.

    Raises:
      UserError: it cannot be written.
    """
    path = Path(path)
    folder = path if is_folder else path.parent
    probe = folder / f".writable.{os.getpid()}"
    try:
        if not is_folder and path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--{flag_name}: must be writable, got {path} ({error.strerror})") from None
