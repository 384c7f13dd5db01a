"""Keeps the best checkpoint of a run by top-1 in a folder of its own, within the log folder."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoints import layout, manifest
from trainer.checkpoints.manifest import Entry, Manifest
from trainer.process import files

_LOCK = ".lock"
# Many times what it takes to replace the best one, which copies nothing.
_PATIENCE_SEC = 30.0


def is_beaten(logdir: Path, *, top1: float) -> bool:
    """Returns whether an accuracy is greater than that of the best checkpoint so far, if any."""
    entries = manifest.read(logdir / layout.BEST).entries
    return not entries or entries[-1].top1 is None or top1 > entries[-1].top1


def replace(logdir: Path, entry: Entry, temporary: Path) -> None:
    """Replaces the best checkpoint, unless another process has put a better one there meanwhile.

    A run, and what follows it, may do so at the same time: one waits for the other.

    Args:
      logdir: the log folder of the run.
      entry: the entry of the new best checkpoint.
      temporary: the folder that holds its files, which are moved.

    Raises:
      OSError: it could not be written.
    """
    folder = logdir / layout.BEST
    folder.mkdir(exist_ok=True)
    with _alone_in(folder):
        if entry.top1 is not None and not is_beaten(logdir, top1=entry.top1):
            return
        with contextlib.suppress(FileNotFoundError):
            files.write_bytes(folder / layout.MODEL, (logdir / layout.MODEL).read_bytes())
        layout.move(temporary, folder)
        manifest.write(folder, Manifest((entry,)))
        layout.write_state(folder, [entry.step])
        kept = {file.name for file in entry.files}
        for path in layout.files_in(folder):
            if path.name not in kept:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Locks the folder of the best checkpoint against other processes.

    Raises:
      OSError: another one has it for long, as one that is stopped, or there is no place for a lock.
    """
    end_sec = time.monotonic() + _PATIENCE_SEC
    with open(folder / _LOCK, "w") as file:
        while True:
            try:
                files.lock(file, file.name, wait=False)
                break
            except BlockingIOError as error:
                if time.monotonic() > end_sec:
                    text = f"another process has been writing there for {_PATIENCE_SEC:.0f} s"
                    raise OSError(error.errno, text, str(folder)) from None
            time.sleep(0.05)
        yield
