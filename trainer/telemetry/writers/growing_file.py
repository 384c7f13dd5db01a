"""A file that grows by whole records, and survives a full disk and a vanished folder."""

import collections
import os
from pathlib import Path


class GrowingFile:
    """Appends records to a file.

    Records wait in memory until `flush`. Where that fails, they wait for the next flush, which
    first completes a record that was written in part: no reader finds a torn record within the
    file. Where the file has vanished, it is created again.
    """

    MAX_WAITING_BYTES = 64 * 2**20

    def __init__(self, path: Path, *, header: bytes = b"") -> None:
        """Touches nothing yet: the first flush of a record creates the file and its folder.

        Args:
          path: the file, which keeps what it contains already.
          header: first record of every file that is created.
        """
        self._path = path
        self._header = header
        self._descriptor: int | None = None
        self._records: collections.deque[bytes] = collections.deque()
        self._waiting_bytes = 0
        self._begun_bytes = 0  # Length of that part of the first record which is in the file.

    def append(self, record: bytes) -> None:
        """Adds a record. The oldest records are dropped where too many wait."""
        self._records.append(record)
        self._waiting_bytes += len(record)
        while self._waiting_bytes > self.MAX_WAITING_BYTES and len(self._records) > 2:
            # Not the first record, a part of which may be in the file.
            self._waiting_bytes -= len(self._records[1])
            del self._records[1]

    def flush(self) -> None:
        """Writes all records into the file.

        Raises:
          OSError: some records can't be written now; they go on waiting.
        """
        if not self._records:
            return
        descriptor = self._open()
        while self._records:
            record = self._records[0]
            self._begun_bytes += os.write(descriptor, memoryview(record)[self._begun_bytes :])
            if self._begun_bytes == len(record):
                self._waiting_bytes -= len(self._records.popleft())
                self._begun_bytes = 0

    def close(self) -> None:
        """Writes all records into the file, and closes it.

        Raises:
          OSError: some records could not be written, and are lost.
        """
        try:
            self.flush()
        finally:
            self._forget()

    def _open(self) -> int:
        """Returns the descriptor of the file, which is created where it does not exist."""
        if self._descriptor is not None and not self._has_vanished(self._descriptor):
            return self._descriptor
        self._forget()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if self._header and not os.fstat(self._descriptor).st_size:
            self._records.appendleft(self._header)
            self._waiting_bytes += len(self._header)
        return self._descriptor

    def _has_vanished(self, descriptor: int) -> bool:
        try:
            there = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        return not os.path.samestat(there, os.fstat(descriptor))

    def _forget(self) -> None:
        self._begun_bytes = 0
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
