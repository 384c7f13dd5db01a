"""The names of a checkpoint's files, and their moves: it is there whole or not at all.

A checkpoint is what `tf.train.Saver` writes, as TensorFlow's and slim's tools read it:
`<logdir>/model.ckpt-<step>.index` and `.data-00000-of-00001`, and the state file `checkpoint`.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoints.manifest import Entry, SavedFile, describe_file
from trainer.process import files as atomic_file

_INDEX = re.compile(r"model\.ckpt-(\d+)\.index")


def steps_in(logdir: str) -> list[int]:
    """Steps of the checkpoints in a folder, newest first, whether good or damaged."""
    folder = Path(logdir)
    if not folder.is_dir():
        return []
    found = (_INDEX.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def prefix_of(logdir: str, step: int) -> str:
    """The checkpoint prefix of a step."""
    return str(Path(logdir) / f"model.ckpt-{step}")


def create_temporary_folder(logdir: Path) -> Path:
    """A new folder for the files of a checkpoint, until they are moved to where they belong.

    Raises:
      OSError: it can't be made.
    """
    folder = atomic_file.temporary_path(logdir / "saving")
    atomic_file.remove(folder)
    folder.mkdir(parents=True)
    return folder


def move(temporary: Path, folder: Path) -> list[SavedFile]:
    """Moves a checkpoint's files into a folder, the index last; returns what they are."""
    paths = sorted(temporary.iterdir(), key=lambda path: path.suffix == ".index")
    files = [describe_file(path) for path in paths]
    for path in paths:
        path.replace(folder / path.name)
    atomic_file.sync(folder)
    return files


def link(folder: Path, entry: Entry) -> Path:
    """A second name for a checkpoint's files, in a temporary folder; copies, where need be."""
    temporary = create_temporary_folder(folder)
    for file in entry.files:
        try:
            os.link(folder / file.name, temporary / file.name)
        except OSError:  # A file system without links.
            shutil.copyfile(folder / file.name, temporary / file.name)
            atomic_file.sync(temporary / file.name)
    return temporary


def write_state(folder: Path, steps: Sequence[int]) -> None:
    """Writes the state file `checkpoint`, for TensorFlow's tools; `steps`, newest first."""
    names = [f"model.ckpt-{step}" for step in reversed(steps)]
    lines = [f'model_checkpoint_path: "{names[-1]}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
    with contextlib.suppress(OSError):  # Nobody here relies on it.
        atomic_file.write_text(folder / "checkpoint", "\n".join(lines) + "\n")
