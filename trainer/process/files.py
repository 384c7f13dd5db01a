"""Files and folders that are there whole or not at all, and the removal of what was left of others.

What is being written has a temporary name, which says who writes it. So what a killed process has
left can be told from what another one is writing at this moment.
"""

import contextlib
import functools
import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import UserError
from trainer.process import identity
from trainer.process.identity import Process

SUFFIX = ".partial"
_TEMPORARY = re.compile(rf"\..+\.(\d+)-(\d+)-([0-9a-f]{{8}}){re.escape(SUFFIX)}")
# Nothing here is written for so long, and no two hosts' clocks are so far apart.
_DAY_SEC = 24 * 3600.0


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all.

    Args:
      path: the file; its folder is made where it is missing.
      content: all of it.

    Raises:
      OSError: it could not be written; what was there before still is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a file, or a folder, whole or not at all: synced and renamed at the end.

    Args:
      path: the file or folder. A folder must not be there yet; the parent must.

    Yields:
      the temporary path to write to, where there is nothing yet. It is removed after an error.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        yield temporary
        for inner in temporary.rglob("*") if temporary.is_dir() else ():
            sync(inner)
        sync(temporary)
        temporary.replace(path)
    finally:
        remove(temporary)
    sync(path.parent)


def temporary_path(path: Path) -> Path:
    """Where this process writes what is to become `path`: beside it, hidden, named for both."""
    pid, start_ticks = identity.this_process()
    return path.with_name(f".{path.name}.{pid}-{start_ticks}-{_host_digest()}{SUFFIX}")


def sweep(folder: Path, *, earlier: re.Pattern[str] | None = None) -> None:
    """Removes what was left half written in a folder that this process holds for itself.

    What a live process of this host writes stays: an evaluation of the run may be under way, whose
    result goes here, too. Processes of other hosts can't be looked up; theirs go, since a run that
    wrote here from another host is gone, or this one would not hold the folder.

    Args:
      folder: need not be there.
      earlier: names that earlier versions gave to what they were writing.
    """
    for path in _list(folder):
        is_ours = earlier is not None and earlier.fullmatch(path.name) is not None
        if is_ours or (_TEMPORARY.fullmatch(path.name) and not _is_being_written(path)):
            remove(path)


def sweep_beside(path: str | os.PathLike[str]) -> None:
    """Removes what was left of attempts to write one file or folder, in a folder that all may use.

    What a live process of this host writes stays, and so does what may be another host's, unless
    it is a day old.

    Args:
      path: the file or folder.
    """
    path = Path(path)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+")  # As earlier versions named theirs.
    for found in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = _TEMPORARY.fullmatch(found.name)
        is_of_this_host = match is not None and match[3] == _host_digest()
        if is_of_this_host:
            if not _is_being_written(found):
                remove(found)
        elif (match or pattern.fullmatch(found.name)) and _age_sec(found) > _DAY_SEC:
            remove(found)


def _is_being_written(temporary: Path) -> bool:
    """Whether a temporary path is of a live process of this host."""
    match = _TEMPORARY.fullmatch(temporary.name)
    if match is None or match[3] != _host_digest():
        return False
    return Process(int(match[1]), int(match[2])).is_alive()


@functools.cache
def _host_digest() -> str:
    """Tells hosts apart, and each start of them: process numbers begin anew."""
    return hashlib.sha256(identity.host_identity().encode()).hexdigest()[:8]


def _age_sec(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime
    return 0.0


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # Most often, it is not there yet.
        return []


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, as far as that can be done."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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
    probe = temporary_path(folder / "writable")
    try:
        if not is_folder and path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--{flag_name}: must be writable, got {path} ({error.strerror})") from None
