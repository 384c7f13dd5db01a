"""Allows one run at a time in a folder, also where several hosts share it."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from trainer import exit_status
from trainer.errors import UserError, status_of
from trainer.process import files
from trainer.safety import lock_holder
from trainer.safety.lock_holder import FILE_NAME

_HEARTBEAT_SEC = 5.0


class RunLock(Protocol):
    """A lock of a folder, held until it is closed or the process ends."""

    def take(self) -> tuple[str, ...]:
        """Takes the folder.

        Returns:
          messages for the console about a stale lock that was removed.

        Raises:
          UserError: another run holds the folder, or it can't be written.
        """

    def close(self) -> None:
        """Releases the folder."""


class NullRunLock:
    """The lock of ranks other than 0, and of runs without --logdir."""

    def take(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass


class FileLock:
    """The lock of rank 0: a file in the folder.

    The file names its holder and has a counter that the holder increases every few seconds. On the
    same host the lock is stale when the holder's process is dead; on another one, when the counter
    stands still.
    """

    def __init__(
        self,
        logdir: str,
        *,
        on_loss: Callable[[str], object],
        silence_sec: float = lock_holder.SILENCE_SEC,
    ) -> None:
        """Creates a lock that is not taken yet.

        Args:
          logdir: the folder; it is made where it is missing.
          on_loss: called with the reason when another run has taken the lock.
          silence_sec: how long to watch the counter in another host's lock.
        """
        self._logdir = logdir
        self._path = Path(logdir) / FILE_NAME
        self._on_loss = on_loss
        self._silence_sec = silence_sec
        self._own = lock_holder.of_this_process()
        self._beats = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)

    def take(self) -> tuple[str, ...]:
        messages: tuple[str, ...] = ()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                messages = self._remove_stale() or messages
        except OSError as error:
            raise UserError(
                f"--logdir: must be writable, got {self._logdir} ({error.strerror})",
                status=status_of(error),
            ) from None
        self._thread.start()
        return messages

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()

    def _write_temporary(self) -> Path:
        self._beats += 1
        temporary = files.temporary_path(self._path)
        temporary.write_text(lock_holder.as_text(self._own, self._beats), encoding="utf-8")
        return temporary

    def _create(self) -> bool:
        """Creates the lock, with its content, at once; returns False where there is one already."""
        temporary = self._write_temporary()
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return self._is_mine()  # A file server may answer so to a repeated request.
        except OSError:  # A file system without links.
            return self._create_in_place(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _is_mine(self) -> bool:
        try:
            return lock_holder.read(self._path)[0] == self._own
        except FileNotFoundError:
            return False

    def _create_in_place(self, temporary: Path) -> bool:
        try:
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(temporary.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
        return True

    def _remove_stale(self) -> tuple[str, ...]:
        """Removes the lock of another run.

        Returns:
          a message about it; none where the lock was gone already.

        Raises:
          UserError: that run is alive.
        """
        try:
            holder, text = lock_holder.read(self._path)
        except FileNotFoundError:
            return ()  # Its run has ended just now.
        if holder is not None and holder.is_of_this_host():
            is_stale, sign = not holder.process.is_alive(), "whose process is gone"
        else:
            print(
                f"slim-horovod: --logdir: watching for {self._silence_sec:.0f} s whether "
                f"{holder or 'an unknown process'} still has it",
                file=sys.stderr,
                flush=True,
            )
            is_stale = _stands_still(self._path, text, self._silence_sec)
            sign = f"which has not stirred for {self._silence_sec:.0f} s"
        if not is_stale:
            raise UserError(
                f"--logdir: must not be in use by another run, got {self._path.parent}, which "
                f"{holder or 'an unknown process'} has. End that run, or choose another folder",
                status=exit_status.FAILED,
            )
        with _one_at_a_time(self._path.parent), contextlib.suppress(FileNotFoundError):
            if lock_holder.read(self._path)[1] == text:  # No other run has taken it meanwhile.
                self._path.unlink()
        return (f"removed the lock of {holder or 'an unknown process'}, {sign}",)

    def _keep(self) -> None:
        while not self._closed.wait(_HEARTBEAT_SEC):
            try:
                if not self._path.exists():  # Somebody has removed it; the run goes on.
                    self._create()
                    continue
                holder, _ = lock_holder.read(self._path)
                if holder not in (None, self._own):
                    self._on_loss(f"{holder} has taken {self._path}")
                    return
                self._write_temporary().replace(self._path)
            except OSError:
                continue  # A full disk, a server that does not answer: try again.


def create_run_lock(logdir: str | None, *, rank: int, on_loss: Callable[[str], object]) -> RunLock:
    """Creates the lock of one worker of a run, not taken yet; `on_loss` as in `FileLock`."""
    if logdir is None or rank != 0:
        return NullRunLock()
    return FileLock(logdir, on_loss=on_loss)


def _stands_still(path: Path, text: str, silence_sec: float) -> bool:
    """Returns whether a file keeps its text for some seconds; it needs no clock of another host."""
    end_sec = time.monotonic() + silence_sec
    while time.monotonic() < end_sec:
        time.sleep(min(1.0, silence_sec / 4))
        try:
            if path.read_text(encoding="utf-8", errors="replace") != text:
                return False
        except FileNotFoundError:
            return False
    return True


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keeps two runs from removing a stale lock at once, as far as file servers support that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            files.lock(descriptor, folder / FILE_NAME, wait=True)
        yield
    finally:
        os.close(descriptor)
