"""Bytes of files: local ones by system calls, those with a scheme (gs://...) by `tf.io.gfile`.

TensorFlow is imported for remote paths only, so that programs on local files start at once.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Any

# Shards that stay open. More than that many are opened for each read, which costs microseconds.
_MAX_OPEN_FILES = 512


def is_remote(path: str) -> bool:
    return "://" in path


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


def is_folder(path: str) -> bool:
    return bool(_gfile().isdir(path)) if is_remote(path) else os.path.isdir(path)


def list_folder(path: str) -> list[str]:
    """Names in a folder, sorted; those of folders without a slash."""
    names = _gfile().listdir(path) if is_remote(path) else os.listdir(path)
    return sorted(name.rstrip("/") for name in names)


def file_state(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns, which together tell that a file is still the same."""
    if is_remote(path):
        state = _gfile().stat(path)
        return state.length, state.mtime_nsec
    local = os.stat(path)
    return local.st_size, local.st_mtime_ns


def read_file(path: str) -> bytes:
    if is_remote(path):
        with _gfile().GFile(path, "rb") as file:
            return file.read()
    with open(path, "rb") as file:
        return file.read()


def map_file(path: str) -> memoryview:
    """The whole file as memory: mapped where it is local, else read."""
    if (
        is_remote(path) or os.path.getsize(path) == 0
    ):  # mmap refuses a file without bytes.
        return memoryview(read_file(path))
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def write_file(path: str, data: bytes) -> None:
    """Writes a local file whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A name beside `path` to write to; synced and renamed to `path` at the end, or removed."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.writing")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


class RangeReader:
    """Reads ranges of many files, from several threads at once."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer where the file ends."""
        if is_remote(path):
            with _gfile().GFile(path, "rb") as file:
                file.seek(offset)
                return file.read(length)
        handle = self._kept_open(path)
        if handle is not None:
            return os.pread(handle, length, offset)
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def _kept_open(self, path: str) -> int | None:
        if path not in self._files:
            with self._lock:
                if path not in self._files and len(self._files) < _MAX_OPEN_FILES:
                    self._files[path] = os.open(path, os.O_RDONLY)
        return self._files.get(path)
