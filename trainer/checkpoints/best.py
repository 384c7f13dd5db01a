"""Keeps the best checkpoint of a run by top-1 in a folder of its own, within the log folder."""

import contextlib
from pathlib import Path

from trainer.checkpoints import layout, manifest
from trainer.checkpoints.manifest import Entry, Manifest
from trainer.process import files


def is_beaten(logdir: Path, *, top1: float) -> bool:
    """Returns whether an accuracy is greater than that of the best checkpoint so far, if any."""
    entries = manifest.read(logdir / layout.BEST).entries
    return not entries or entries[-1].top1 is None or top1 > entries[-1].top1


def replace(logdir: Path, entry: Entry, temporary: Path) -> None:
    """Replaces the best checkpoint.

    Args:
      logdir: the log folder of the run.
      entry: the entry of the new best checkpoint.
      temporary: the folder that holds its files, which are moved.

    Raises:
      OSError: it could not be written.
    """
    folder = logdir / layout.BEST
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        files.write_bytes(folder / layout.MODEL, (logdir / layout.MODEL).read_bytes())
    layout.move(temporary, folder)
    manifest.write(folder, Manifest((entry,)))
    layout.write_state(folder, [entry.step])
    kept = {file.name for file in entry.files}
    for path in layout.files_in(folder):
        if path.name not in kept:
            path.unlink(missing_ok=True)
