"""Writes files and folders whole or not at all, and removes what killed processes left of theirs.

While a file is written it has a temporary name, which tells the process that writes it: so a file
that a killed process left can be told from one that another process is writing.
"""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from trainer.errors import UserError, status_of
from trainer.process import identity
from trainer.process.identity import Process

SUFFIX = ".partial"
# What file systems answer to what they do not have.
_UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
)
_TEMPORARY = re.compile(rf"\..+\.(\d+)-(\d+)-([0-9a-f]{{8}}){re.escape(SUFFIX)}")
# Longer than anything takes to be written, and than two hosts' clocks differ.
_DAY_SEC = 24 * 3600.0


class SupportsFileno(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Returns its descriptor."""


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all.

    Args:
      path: the file, or a link to it; its folder is made where it is missing. What `is_stream` is
        written to.
      content: the whole content.

    Raises:
      OSError: it could not be written; the previous file, if any, is still there.
    """
    path = Path(path)
    if is_stream(path):
        with open(path, "ab") as stream:
            stream.write(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a device, a pipe or an open file of a process.

    Such a one must not be replaced: whoever reads it would wait for ever, and for root `/dev/null`
    would become a file.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return True
    while path.is_symlink():  # /dev/stdout leads to a file where the shell was told "> FILE".
        folder = path.parent.resolve()
        if folder.is_relative_to("/proc"):
            return True
        path = folder / path.readlink()
    return False


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a file, or a folder, whole or not at all: synced and renamed at the end.

    Args:
      path: the file or folder. A folder must not be there yet; the parent must. Where it is a link,
        what it leads to.

    Yields:
      the temporary path to write to. Nothing is there yet; after an error it is removed.

    Raises:
      OSError: `is_stream`, which can't be replaced.
    """
    if is_stream(path):
        raise OSError(errno.ENOTSUP, "is no file that can be replaced")
    path = Path(os.path.realpath(path))
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
    """Returns the path under which this process writes `path` before it is renamed: beside it."""
    pid, start_ticks = identity.this_process()
    return path.with_name(f".{path.name}.{pid}-{start_ticks}-{_host_digest()}{SUFFIX}")


def sweep(
    folder: Path, *, earlier: re.Pattern[str] | None = None, shared: str | None = None
) -> None:
    """Removes temporary files and folders from a folder that this process has locked.

    Those of live processes on this host stay: an evaluation may be writing its result here.
    Processes on other hosts can't be looked up. Theirs are removed: a run that wrote here from
    another host has ended, or this process would not have got the lock.

    Args:
      folder: the folder, which may be missing.
      earlier: temporary names that earlier versions used.
      shared: name of what processes without the lock write here, too: it stays until it is a day
        old, since the next such process goes on with it.
    """
    for path in _list(folder):
        match = _TEMPORARY.fullmatch(path.name)
        if match and path.name.startswith(f".{shared}.") and _age_sec(path) <= _DAY_SEC:
            continue
        is_ours = earlier is not None and earlier.fullmatch(path.name) is not None
        if is_ours or (match and not _is_being_written(path)):
            remove(path)


def sweep_beside(path: str | os.PathLike[str]) -> None:
    """Removes temporary copies of one file or folder, where the folder around it is not locked.

    Those of live processes on this host stay, and those that may be another host's until they are
    a day old: whether their processes live can't be looked up.

    Args:
      path: the file or folder that they were to become.
    """
    path = Path(os.path.realpath(path))
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+")  # As in earlier versions.
    for found in abandoned(path):
        remove(found)
    for found in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = _TEMPORARY.fullmatch(found.name)
        is_of_others = match is not None and match[3] != _host_digest()
        if (is_of_others or pattern.fullmatch(found.name)) and _age_sec(found) > _DAY_SEC:
            remove(found)


def abandoned(path: Path) -> list[Path]:
    """Returns the temporary copies of a file or folder that dead processes of this host left."""
    return [
        found
        for found in sorted(path.parent.glob(f".{glob.escape(path.name)}.*{SUFFIX}"))
        if (match := _TEMPORARY.fullmatch(found.name)) is not None
        and match[3] == _host_digest()
        and not _is_being_written(found)
    ]


def _is_being_written(temporary: Path) -> bool:
    """Returns whether a temporary path belongs to a live process on this host."""
    match = _TEMPORARY.fullmatch(temporary.name)
    if match is None or match[3] != _host_digest():
        return False
    return Process(int(match[1]), int(match[2])).is_alive()


@functools.cache
def _host_digest() -> str:
    """Returns a short name of this host since its last start, for which process numbers hold."""
    return hashlib.sha256(identity.host_identity().encode()).hexdigest()[:8]


def _age_sec(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime
    return 0.0


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # Most often it does not exist yet.
        return []


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content; ignores what can't be removed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file's content, or the names in a folder, to disk: a power cut spares it then.

    Where the file system cannot do that, it is told once.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        what, place = ("folders", path) if path.is_dir() else ("files", path.parent)
        _tell_once(
            f"{place}: this file system does not flush {what} ({error.strerror}): a power cut may "
            "take what was written last"
        )
    finally:
        os.close(descriptor)


def lock(file: SupportsFileno | int, path: str | os.PathLike[str], *, wait: bool) -> None:
    """Locks an open file or folder against other processes, until it is closed.

    Where the file system has no locks, it is told once.

    Args:
      file: the open file.
      path: its path, for the message.
      wait: whether to wait for another process that has it.

    Raises:
      BlockingIOError: another process has it, and this one does not wait.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _tell_once(
            f"{os.path.dirname(path)}: this file system has no locks ({error.strerror}): keep "
            "other processes from writing there at the same time"
        )


@functools.cache
def _tell_once(text: str) -> None:
    print(f"slim-horovod: {text}", file=sys.stderr, flush=True)


def find_write_error(path: str | os.PathLike[str], *, is_folder: bool) -> OSError | None:
    """Returns why a file, or files in a folder, can't be written; None where they can.

    Args:
      path: the folder to write into, made where it is missing, or the file to write.
      is_folder: whether the path is that of a folder.
    """
    path = Path(path)
    try:
        folder = path if is_folder else Path(os.path.realpath(path)).parent
        probe = temporary_path(folder / "writable")
        if not is_folder and path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        if not is_folder and is_stream(path):
            # Opening a pipe waits for its reader.
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return None
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error
    return None


def check_writable(path: str | os.PathLike[str], flag_name: str, *, is_folder: bool) -> None:
    """Checks before a run that its results can be written, as `find_write_error` does.

    Raises:
      UserError: they can't; the message names the flag that gave the path.
    """
    error = find_write_error(path, is_folder=is_folder)
    if error is not None:
        raise UserError(
            f"--{flag_name}: must be writable, got {os.fspath(path)} ({error.strerror})",
            status=status_of(error),
        )
