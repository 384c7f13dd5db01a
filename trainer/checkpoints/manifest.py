"""Reads and writes `<logdir>/checkpoints.json`, which describes each checkpoint and its files."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from trainer.checkpoints import background, layout
from trainer.process import files, json_files

FORMAT = "slim-horovod checkpoints 1"
_READ_BYTES = 1 << 22


class SavedFile(NamedTuple):
    """One file of a checkpoint: its name within its folder, its size and its checksum."""

    name: str
    bytes: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """Facts about the run that made a checkpoint.

    Attributes:
      workers: number of workers.
      global_batch_size: examples per step, over all workers.
      total_steps: steps from the beginning of the run to its end.
      train_examples: examples per epoch.
      fingerprint: the data set's fingerprint.
      versions: versions of Python and the packages, by name.
      config: every flag, as `dataclasses.asdict` gives them.
      kernels: the compiled kernels in use, as `cpu_kernels.library.describe` has it; None: an
        earlier version of this program did not record it.
    """

    workers: int
    global_batch_size: int
    total_steps: int
    train_examples: int
    fingerprint: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    kernels: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Attributes:
      step: number of updates made.
      epoch: passes over the training data.
      examples: number of training examples seen: its position in their sequence.
      saved_at: time of saving, ISO 8601, UTC.
      files: all of its files.
      run: facts about the run that made it.
      top1: accuracy in the evaluation after this step; None: there was no evaluation.
    """

    step: int
    epoch: float
    examples: int
    saved_at: str
    files: tuple[SavedFile, ...]
    run: RunFacts
    top1: float | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The checkpoints of a folder, oldest first.

    Attributes:
      entries: one entry per checkpoint that was saved and not yet removed.
      fault: description of the damage, where the file is damaged; there are no entries then.
    """

    entries: tuple[Entry, ...] = ()
    fault: str | None = None

    def find(self, step: int) -> Entry | None:
        """Returns the entry of a step, if there is one."""
        return next((entry for entry in self.entries if entry.step == step), None)

    def without(self, *steps: int) -> "Manifest":
        """Returns this manifest without some steps."""
        return Manifest(tuple(entry for entry in self.entries if entry.step not in steps))

    def with_entry(self, entry: Entry) -> "Manifest":
        """Returns this manifest with an entry, which replaces one of the same step."""
        entries = [*self.without(entry.step).entries, entry]
        return Manifest(tuple(sorted(entries, key=lambda entry: entry.step)))


class _Content(NamedTuple):
    """The content of the file."""

    format: str
    checkpoints: tuple[Entry, ...]


def read(folder: Path) -> Manifest:
    """Reads the manifest of a folder; returns an empty one where none can be read."""
    path = folder / layout.MANIFEST
    try:
        content = json_files.build(_Content, json_files.read(path))
        if content.format != FORMAT:
            raise json_files.FormatError(f"its format is not {FORMAT!r}")
        for file in (file for entry in content.checkpoints for file in entry.files):
            if Path(file.name).name != file.name or file.name in ("", ".", ".."):
                raise json_files.FormatError(
                    f"{file.name!r} is not the name of a file in this folder"
                )
        return Manifest(content.checkpoints)
    except FileNotFoundError:
        return Manifest()
    except (OSError, json_files.FormatError) as error:
        return Manifest(
            fault=f"{path} cannot be read ({error}): checkpoints are read whole instead"
        )


def write(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest of a folder.

    Raises:
      OSError: it can't be written; the previous one is still there.
    """
    entries = [
        {**dataclasses.asdict(entry), "files": [file._asdict() for file in entry.files]}
        for entry in manifest.entries
    ]
    text = json.dumps({"format": FORMAT, "checkpoints": entries}, indent=1)
    files.write_text(folder / layout.MANIFEST, text + "\n")


def describe_file(path: Path) -> SavedFile:
    """Reads a whole file for its size and checksum."""
    crc, size = 0, 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            crc = google_crc32c.extend(crc, block)
            size += len(block)
            background.rest()
    return SavedFile(path.name, size, crc)


def describe_files(folder: Path) -> tuple[SavedFile, ...]:
    """Describes all files in a folder that holds one checkpoint and nothing else."""
    return tuple(describe_file(path) for path in sorted(folder.iterdir()))


def fault_in(folder: Path, entry: Entry) -> str | None:
    """Returns what is wrong with a checkpoint's files; None where they are as they were saved."""
    for expected in entry.files:
        try:
            found = describe_file(folder / expected.name)
        except FileNotFoundError:
            return f"{expected.name} is missing"
        except OSError as error:
            return f"{expected.name}: {error.strerror}"
        if found.bytes != expected.bytes:
            return f"{expected.name} has {found.bytes} bytes instead of {expected.bytes}"
        if found.crc32c != expected.crc32c:
            return f"{expected.name} is not what was written: its checksum differs"
    return None
