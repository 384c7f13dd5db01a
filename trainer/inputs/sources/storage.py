"""Reads and writes files: local ones by system calls, remote ones (gs://...) by `tf.io.gfile`.

TensorFlow is imported for remote paths only, so that programs on local files start at once.
"""

import contextlib
import errno
import mmap
import os
import resource
import stat
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainer.process import files

# How many shards of a split stay open. Others are opened for each read, which takes microseconds.
_MAX_OPEN_FILES = 512
_SHARE_OF_LIMIT = 4  # At most a quarter of what the process may have open.


def is_remote(path: str) -> bool:
    """Returns whether a path has a scheme, so that TensorFlow has to read it."""
    return "://" in path


# Of TensorFlow's codes (google.rpc.Code), those that have a meaning of their own for files.
_ERRNO = {
    3: errno.EINVAL,  # INVALID_ARGUMENT
    5: errno.ENOENT,  # NOT_FOUND
    6: errno.EEXIST,  # ALREADY_EXISTS
    7: errno.EACCES,  # PERMISSION_DENIED
    12: errno.ENOTSUP,  # UNIMPLEMENTED
    16: errno.EACCES,  # UNAUTHENTICATED
}


@contextlib.contextmanager
def _gfile(path: str) -> Iterator[Any]:
    """Yields `tf.io.gfile`, and turns its errors into OSErrors, such as local files raise."""
    import tensorflow as tf  # Here, since it takes seconds, and only remote files need it.

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        raise OSError(_ERRNO.get(error.error_code, errno.EIO), error.message, path) from error


def normalize(path: str) -> str:
    """Returns one path for all ways to write it: with a slash at its end, with `./` before it."""
    if is_remote(path):
        return path.rstrip("/")
    # Not what `..` stands for: that depends on links.
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "."


def is_folder(path: str) -> bool:
    """Returns whether there is a folder at this path."""
    if not is_remote(path):
        return os.path.isdir(path)
    with _gfile(path) as gfile:
        return bool(gfile.isdir(path))


def list_folder(path: str) -> list[str]:
    """Returns the names in a folder, sorted; those of folders without a slash."""
    if not is_remote(path):
        return sorted(os.listdir(path))
    with _gfile(path) as gfile:
        return sorted(name.rstrip("/") for name in gfile.listdir(path))


class Entry(NamedTuple):
    """A name in a folder.

    Attributes:
      name: the name, without a slash.
      is_folder: whether it is a folder, or a link to one.
      is_link: whether it is a link.
    """

    name: str
    is_folder: bool
    is_link: bool


def list_entries(path: str, *, file_suffixes: tuple[str, ...] = ()) -> list[Entry]:
    """Lists a folder, sorted by name.

    Args:
      path: the path of the folder.
      file_suffixes: the ends, in lower case, of names that are taken for files' in remote folders,
        where it takes a request to find out.
    """
    if not is_remote(path):
        with os.scandir(path) as found:
            return sorted(Entry(e.name, e.is_dir(), e.is_symlink()) for e in found)
    with _gfile(path) as gfile:
        names = gfile.listdir(path)
        return sorted(
            Entry(
                name.rstrip("/"),
                name.endswith("/")
                or (
                    not name.lower().endswith(file_suffixes)
                    and gfile.isdir(os.path.join(path, name))
                ),
                False,
            )
            for name in names
        )


def file_state(path: str) -> tuple[int, int]:
    """Returns a file's size in bytes and time of change in ns: both stay as long as it does."""
    if is_remote(path):
        with _gfile(path) as gfile:
            remote = gfile.stat(path)
        return remote.length, remote.mtime_nsec
    local = os.stat(path)
    return local.st_size, local.st_mtime_ns


def read_file(path: str) -> bytes:
    """Reads a whole file.

    Raises:
      OSError: it can't be read, or is a pipe or device, which may have no end.
    """
    if is_remote(path):
        with _gfile(path) as gfile, gfile.GFile(path, "rb") as file:
            return file.read()
    # To make a buffer takes a tenth of the time.
    with open(path, "rb", buffering=0, opener=_open_regular) as file:
        return file.readall()


def read_beginning(path: str, count: int) -> bytes:
    """Reads the first bytes of a file."""
    if is_remote(path):
        with _gfile(path) as gfile, gfile.GFile(path, "rb") as file:
            return file.read(count)
    with open(path, "rb", buffering=0, opener=_open_regular) as file:
        return file.read(count)


def _open_regular(path: str, flags: int) -> int:
    """Opens a file; raises OSError for a pipe, on which opening alone may wait for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "is a pipe or device", path)


def map_file(path: str) -> memoryview:
    """Returns a whole file as memory: mapped where it is local, else read."""
    if is_remote(path) or os.path.getsize(path) == 0:  # mmap refuses a file without bytes.
        return memoryview(read_file(path))
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def write_file(path: str, data: bytes) -> None:
    """Writes a local file whole or not at all."""
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


class RangeReader:
    """A reader of ranges of many files. Several threads may use it."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        is_endless = allowed == resource.RLIM_INFINITY
        self._most = (
            _MAX_OPEN_FILES if is_endless else min(_MAX_OPEN_FILES, allowed // _SHARE_OF_LIMIT)
        )
        self._lock = threading.Lock()
        self._latest_remote = threading.local()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Reads `length` bytes from `offset` on; fewer where the file ends."""
        if is_remote(path):
            return self._read_remote(path, offset, length)
        handle = self._kept_open(path)
        if handle is not None:
            return os.pread(handle, length, offset)
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def _read_remote(self, path: str, offset: int, length: int) -> bytes:
        # Each thread has a file of its own, so that it reads neighbours through one buffer.
        latest = self._latest_remote
        with _gfile(path) as gfile:
            if getattr(latest, "path", None) != path:
                latest.path, latest.file = path, gfile.GFile(path, "rb")
            latest.file.seek(offset)
            return latest.file.read(length)

    def _kept_open(self, path: str) -> int | None:
        """Returns the descriptor of a file that stays open; None: too many are open already."""
        if path not in self._files:
            with self._lock:
                if path not in self._files and len(self._files) < self._most:
                    self._files[path] = os.open(path, os.O_RDONLY)
        return self._files.get(path)
