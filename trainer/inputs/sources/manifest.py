"""`dataset.json`: the manifest of the shards that scripts/make_tfrecords.py has written."""

import dataclasses
import json
import os
from typing import Any

from trainer.errors import UserError
from trainer.inputs.sources import storage

FILE_NAME = "dataset.json"
FORMAT = "slim-horovod dataset 1"


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
    splits: dict[str, tuple[Shard, ...]]
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        counts = {
            split: sum(shard.examples for shard in shards) for split, shards in self.splits.items()
        }
        return json.dumps({"format": FORMAT, "examples": counts, **fields}, indent=1) + "\n"


def _parse(fields: Any) -> Manifest:
    """Returns the manifest in parsed JSON; raises an error of some kind where it is none."""
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f'"format" is not {FORMAT!r}')
    splits = {
        str(split): tuple(Shard(**shard) for shard in shards)
        for split, shards in fields["splits"].items()
    }
    for shard in (shard for shards in splits.values() for shard in shards):
        if os.path.basename(shard.file) != shard.file or shard.file in ("", ".", ".."):
            raise ValueError(f"{shard.file!r} is not the name of a file in this folder")
    classes = tuple(fields["classes"])
    for name in classes:
        if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a class")
    return Manifest(
        source=str(fields["source"]),
        classes=classes,
        label_offset=int(fields["label_offset"]),
        splits=splits,
        smallest_image=tuple(fields["smallest_image"]),
        largest_image=tuple(fields["largest_image"]),
    )


def read_manifest(folder: str) -> Manifest | None:
    """Reads the manifest of a data set; returns None where there is none.

    Raises:
      UserError: it is damaged or of another format.
    """
    if FILE_NAME not in storage.list_folder(folder):
        return None
    path = os.path.join(folder, FILE_NAME)
    try:
        return _parse(json.loads(storage.read_file(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path}: not a manifest that this version reads ({fault}). "
            "Write it anew with scripts/make_tfrecords.py."
        ) from error


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Writes the manifest of the data set in `folder`, whole or not at all."""
    storage.write_file(os.path.join(folder, FILE_NAME), manifest.to_json().encode())
