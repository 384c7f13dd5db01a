"""Names a checkpoint's files, and moves them so that a checkpoint is there whole or not at all.

A checkpoint is what `tf.train.Saver` writes, as TensorFlow's and slim's tools read it:
`<logdir>/model.ckpt-<step>.index` and `.data-00000-of-00001`, and the state file `checkpoint`.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.process import files

MANIFEST = "checkpoints.json"
# Within the log folder: the folder of the best checkpoint by top-1.
BEST = "best"
# Within the log folder, as a temporary folder: the checkpoints that --follow has still to evaluate.
FOLLOWING = "following"
# Beside the checkpoints of a run: what they do not say of its network.
MODEL = "model.json"
STATE = "checkpoint"
_NAME = "model.ckpt-"
# What the names of a checkpoint's files have behind its prefix; the last is of its graph.
FILE_ENDING = re.compile(r"\.(index|data-\d{5}-of-\d{5}|meta)$")
_INDEX = re.compile(rf"{re.escape(_NAME)}(\d+)\.index")
_V1 = re.compile(r"\.ckpt(-\d+)?$")
_ANY = re.compile(rf"{re.escape(_NAME)}(\d+)\..+")


def steps_in(logdir: str) -> list[int]:
    """Returns the steps of the checkpoints in a folder, newest first, good or damaged."""
    return _steps_named(Path(logdir), _INDEX)


def steps_with_files(folder: Path) -> list[int]:
    """Returns likewise the steps of all files of checkpoints: some may have data and no index."""
    return _steps_named(folder, _ANY)


def _steps_named(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    if not folder.is_dir():
        return []
    found = (pattern.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def prefix_of(logdir: str, step: int) -> str:
    """Returns the prefix of the names of a step's checkpoint, with the folder."""
    return str(Path(logdir) / f"{_NAME}{step}")


def files_in(folder: Path, *, step: int | None = None) -> list[Path]:
    """Lists files of checkpoints in a folder, an index before its data.

    Args:
      folder: the folder, which may be missing.
      step: the step of the checkpoint; None: of all checkpoints.
    """
    pattern = f"{_NAME}*" if step is None else f"{_NAME}{step}.*"
    return sorted(folder.glob(pattern), reverse=True)


def is_prefix(path: str) -> bool:
    """Returns whether a path is the prefix of a checkpoint that is there."""
    return Path(f"{path}.index").is_file()


def list_foreign(folder: Path) -> list[str]:
    """Returns the names of checkpoints in a folder, whatever they are called, of V1 and V2."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    complete = {path.name.removesuffix(".index") for path in paths if path.suffix == ".index"}
    # One of V1 is a file by itself; with its graph beside it, or named as slim's published ones.
    with_graph = {path.name.removesuffix(".meta") for path in paths if path.suffix == ".meta"}
    alone = {
        path.name
        for path in paths
        if (path.name in with_graph or _V1.search(path.name)) and path.is_file()
    }
    return sorted((complete | alone) - {STATE})


@contextlib.contextmanager
def temporary_folder(logdir: Path) -> Iterator[Path]:
    """Makes a folder to write a checkpoint into before its files are moved; removes it at the end.

    Raises:
      OSError: it can't be made.
    """
    folder = files.temporary_path(logdir / "saving")
    files.remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        files.remove(folder)


def move(temporary: Path, folder: Path) -> None:
    """Moves a checkpoint's files into a folder; the index comes last and makes it complete."""
    for path in reversed(files_in(temporary)):
        path.replace(folder / path.name)
    files.sync(folder)


def link(names: Sequence[str], *, source: Path, target: Path) -> None:
    """Gives files a second name in another folder; copies them where links are not possible."""
    for name in names:
        try:
            os.link(source / name, target / name)
        except OSError:  # A file system without links.
            shutil.copyfile(source / name, target / name)
            files.sync(target / name)


def write_state(folder: Path, steps: Sequence[int]) -> None:
    """Writes the state file `checkpoint` for TensorFlow's tools; `steps` has the newest first."""
    names = [f"{_NAME}{step}" for step in reversed(steps)]
    lines = [f'model_checkpoint_path: "{names[-1]}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
    with contextlib.suppress(OSError):  # This program does not read it.
        files.write_text(folder / STATE, "\n".join(lines) + "\n")
