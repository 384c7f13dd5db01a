"""`dataset.json`: the manifest of the shards that scripts/make_tfrecords.py has written."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from trainer.errors import UserError
from trainer.inputs.sources import storage
from trainer.process import json_files

FILE_NAME = "dataset.json"
FORMAT = "slim-horovod dataset 1"
_FORMATS = "slim-horovod dataset"  # Those of all versions.


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard and what it has to hold.

    Attributes:
      file: the name of the file within the data set's folder.
      examples: the number of its examples.
      bytes: its size.
      crc32c: the CRC-32C of all its bytes.
    """

    file: str
    examples: int
    bytes: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of a set of shards.

    Attributes:
      source: a text that changes when the images or the options do that the shards were made from.
      classes: the names of the classes, by label.
      label_offset: the label of the first class.
      splits: the shards of train and validation.
      smallest_image, largest_image: the least and the greatest height and width, pixels.
    """

    source: str
    classes: tuple[str, ...]
    label_offset: int
    splits: Mapping[str, tuple[Shard, ...]]
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        counts = {
            split: sum(shard.examples for shard in shards) for split, shards in self.splits.items()
        }
        return json.dumps({"format": FORMAT, "examples": counts, **fields}, indent=1) + "\n"


def _parse(content: bytes) -> Manifest:
    """Returns the manifest in a file's content; raises FormatError where it is none."""
    fields = json_files.build(dict[str, Any], json_files.parse(content))
    if fields.get("format") != FORMAT:
        raise json_files.FormatError(f'"format" is not {FORMAT!r}')
    described = {name: v for name, v in fields.items() if name not in ("format", "examples")}
    manifest = json_files.build(Manifest, described)
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        if os.path.basename(shard.file) != shard.file or shard.file in ("", ".", ".."):
            raise json_files.FormatError(f"{shard.file!r} is not the name of a file in this folder")
    for name in manifest.classes:
        if "/" in name or name in ("", ".", ".."):
            raise json_files.FormatError(f"{name!r} is not the name of a class")
    return manifest


def is_in(folder: str) -> bool:
    """Returns whether a folder has a manifest: good, damaged, or of another version.

    Other programs have files of the same name.
    """
    if FILE_NAME not in storage.list_folder(folder):
        return False
    try:
        fields = json_files.parse(storage.read_file(os.path.join(folder, FILE_NAME)))
    except json_files.FormatError:
        return True
    return isinstance(fields, dict) and str(fields.get("format")).startswith(_FORMATS)


def read_manifest(folder: str) -> Manifest | None:
    """Reads the manifest of a data set; returns None where there is none.

    Raises:
      UserError: it is damaged or of another format.
    """
    if FILE_NAME not in storage.list_folder(folder):
        return None
    path = os.path.join(folder, FILE_NAME)
    try:
        return _parse(storage.read_file(path))
    except json_files.FormatError as error:
        raise UserError(
            f"{path}: not a manifest that this version reads ({error}). "
            "Write it anew with scripts/make_tfrecords.py, or remove it if it is another program's."
        ) from error


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Writes the manifest of the data set in `folder`, whole or not at all."""
    storage.write_file(os.path.join(folder, FILE_NAME), manifest.to_json().encode())
