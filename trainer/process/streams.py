"""The standard streams: they escape what they cannot encode, and a run waits for no reader."""

import atexit
import collections
import contextlib
import errno
import functools
import io
import os
import select
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

_MAX_WAITING_BYTES = 2**20
# At the end, a reader may take this long for each line before the rest is given up.
_PATIENCE_SEC = 5.0
_LEAST_PATIENCE_SEC = 0.2
# Errors of a pipe without a reader, a terminal that hung up, a file that was closed. Others may
# pass, such as those of a full disk.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class Printer:
    """Writes to a file in a thread, so that nobody has to wait for whoever reads it.

    A terminal that was stopped (Ctrl-S) or a pipe whose reader is busy takes nothing for a while.
    Lines wait meanwhile; where they become too many, the oldest are dropped, and their number is
    told in their place. On a full disk, they are tried again. Where the reader or the terminal is
    gone, nothing is printed any more.
    """

    def __init__(self, descriptor: int, *, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        """Starts the thread.

        Args:
          descriptor: the file.
          max_waiting_bytes: size above which the oldest lines are dropped.
        """
        self._descriptor = descriptor
        self._max_waiting_bytes = max_waiting_bytes
        self._lines: collections.deque[bytes] = collections.deque()  # The last may be unfinished.
        self._waiting_bytes = 0
        self._dropped = 0
        self._written_bytes = 0
        self._is_busy = False  # Whether the thread has a line in hand.
        self._failures = 0  # Attempts on a full disk.
        self._given_up_at: int | None = None  # What was written when nobody seemed to read.
        self._is_gone = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="printer", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queues data, which are written after all that waits. Returns at once."""
        if not data:
            return
        with self._changed:
            if self._is_gone:
                return
            is_apart = data.startswith(b"\r")  # A progress bar, drawn once more.
            if self._lines and not is_apart and not self._lines[-1].endswith(b"\n"):
                self._waiting_bytes -= len(self._lines[-1])
                data = self._lines.pop() + data
            self._lines.append(data)
            self._waiting_bytes += len(data)
            while self._waiting_bytes > self._max_waiting_bytes:
                oldest = self._lines.popleft()
                self._waiting_bytes -= len(oldest)
                self._dropped += oldest.count(b"\n")
            self._changed.notify_all()

    def drain(self, patience_sec: float = _PATIENCE_SEC) -> None:
        """Waits until all is written, as long as some of it is written now and then.

        Args:
          patience_sec: time without anything written after which the rest is given up.
        """
        with self._changed:
            self._changed.notify_all()  # On a full disk, the thread tries once more.
            failures = self._failures
            while not self._is_done(failures):
                written_bytes = self._written_bytes
                if written_bytes == self._given_up_at:
                    return
                moved = functools.partial(self._has_moved, written_bytes, failures)
                if not self._changed.wait_for(moved, patience_sec):
                    self._given_up_at = written_bytes

    def _is_done(self, failures: int) -> bool:
        return not (self._lines or self._is_busy) or self._failures != failures

    def _has_moved(self, written_bytes: int, failures: int) -> bool:
        return self._written_bytes != written_bytes or self._is_done(failures)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                data = self._take()
                self._is_busy = True
            left = self._write(data)
            with self._changed:
                self._is_busy = False
                if left:
                    self._failures += 1
                    self._lines.appendleft(left)
                    self._waiting_bytes += len(left)
                if self._is_gone:
                    self._lines.clear()
                self._changed.notify_all()
                if self._is_gone:
                    return
                if left:  # Another line may find room on the disk.
                    self._changed.wait(1.0)

    def _take(self) -> bytes:
        """Takes the next line; before it, the number of those that were dropped there."""
        data = self._lines.popleft()
        self._waiting_bytes -= len(data)
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            data = b"slim-horovod: %d lines dropped here: nobody read them\n" % dropped + data
        return data

    def _write(self, data: bytes) -> bytes:
        """Writes data, waits for that; returns what found no room on the disk."""
        while data:
            try:
                count = os.write(self._descriptor, data[: select.PIPE_BUF])
            except BlockingIOError:  # Whoever shares the file has made it so.
                select.select([], [self._descriptor], [])
                continue
            except OSError as error:
                if error.errno not in _GONE:
                    return data
                self._is_gone = True
                return b""
            data = data[count:]
            with self._changed:
                self._written_bytes += count
                self._changed.notify_all()
        return b""


class _Stream:
    """A standard stream whose writes go to a printer; in all else it is what it was."""

    def __init__(self, stream: TextIO, printer: Printer) -> None:
        self._stream = stream
        self._printer = printer

    def write(self, text: str) -> int:
        """Passes a text to the printer; returns its length."""
        self._printer.put(text.encode(self._stream.encoding, "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Passes texts to the printer."""
        self.write("".join(lines))

    @property
    def buffer(self) -> "_Buffer":
        """The stream for bytes."""
        return _Buffer(self._printer)

    def flush(self) -> None:
        """Does nothing: all is written as soon as it can be."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Buffer:
    """A standard stream's bytes, which go to a printer."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def write(self, data: bytes) -> int:
        """Passes bytes to the printer; returns their number."""
        self._printer.put(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Does nothing: all is written as soon as it can be."""


# By what tells files apart, since the two streams are often one file, whose lines keep their order.
_printers: dict[tuple[int, int], Printer] = {}


def print_anything() -> None:
    """Makes the standard streams escape what they cannot encode, whatever they were told."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def write_to_terminal(descriptor: int, file: Path) -> None:
    """Sends all that this process writes to a standard stream to a terminal itself from now on.

    A launcher that reads it from a pipe would pass it on line by line, behind a mark, and no
    program behind a pipe draws a progress bar.

    Args:
      descriptor: 1: the standard output; 2: the standard error.
      file: the terminal. Nothing changes where it is no terminal, or can't be opened.
    """
    try:
        terminal = os.open(file, os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        return
    if os.isatty(terminal):
        stream = sys.stdout if descriptor == 1 else sys.stderr
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.flush()
            os.dup2(terminal, descriptor)
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.close(terminal)


def never_wait() -> None:
    """Makes threads write the process's standard streams from now on; see `Printer`.

    For a run that others depend on. Results that a program computes for its reader have to wait for
    the reader, and must not be dropped. Streams that were replaced are left as they are.
    """
    if not _printers:
        atexit.register(drain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        try:
            stream.flush()
            status = os.fstat(stream.fileno())
        except (OSError, ValueError):  # It was closed.
            continue
        key = (status.st_dev, status.st_ino)
        printer = _printers.get(key) or _printers.setdefault(key, Printer(stream.fileno()))
        setattr(sys, name, _Stream(stream, printer))


def drain() -> None:
    """Waits for what `never_wait` has still to write, while somebody reads it.

    Where nobody does, only the first call waits, and for all printers together.
    """
    end_sec = time.monotonic() + _PATIENCE_SEC
    for printer in _printers.values():
        # A slow reader of one may have taken all the time: another's still gets some.
        printer.drain(max(_LEAST_PATIENCE_SEC, end_sec - time.monotonic()))
