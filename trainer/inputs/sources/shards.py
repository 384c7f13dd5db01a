"""`--dataset=tfrecord`: shards named `train-00000-of-01024` and `validation-00000-of-00128`."""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.errors import UserError
from trainer.inputs.source import Source
from trainer.inputs.sources import example_proto, index, manifest, storage, tfrecord
from trainer.inputs.sources.background import names_of_background
from trainer.inputs.sources.left_out import LeftOut, is_hidden
from trainer.inputs.sources.listing import SPLITS

# Such names as flowers_train_00000-of-00005.tfrecord, too, which other scripts of tf-slim write,
# and imagenet2012-train.tfrecord-00000-of-01024, which TensorFlow Datasets writes.
_SHARD_NAME = re.compile(
    r"(?:^|.*[-_])(train|validation|valid|val)(?:\.tfrecords?)?[-_](\d{5})-of-(\d{5})"
    r"(?:\.tfrecords?)?$"
)
# Of what a record was made, as in ImageNet's form and as TensorFlow Datasets writes it.
_NAME_FEATURES = ("image/filename", "file_name")
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
# What else may be shards of a data set.
_LIKE_SHARDS = re.compile(r"\d+-of-\d+|\.tfrecords?($|[-.])")


class ShardSplit:
    """A split of shards; examples are numbered in the order of shards and of their records."""

    def __init__(
        self, paths: Sequence[str], shards: Sequence[index.ShardIndex], labels: npt.NDArray[Any]
    ) -> None:
        self.labels = labels
        self._paths = paths
        self._shards = shards
        self._firsts = np.cumsum([0] + [len(shard.labels) for shard in shards])
        self._reader = storage.RangeReader()

    def _locate(self, example: int) -> tuple[int, int]:
        """Returns the number of an example's shard, and of its record there."""
        shard = int(np.searchsorted(self._firsts, example, side="right")) - 1
        return shard, example - int(self._firsts[shard])

    def where(self, example: int) -> str:
        shard, record = self._locate(example)
        return (
            f"{self._paths[shard]}: record {record} at byte {self._shards[shard].offsets[record]}"
        )

    def short_name(self, example: int) -> str:
        """Returns the name of the file that the record was made of, or, without, its place."""
        shard, record = self._locate(example)
        with contextlib.suppress(tfrecord.ShardError, ValueError):
            data = memoryview(self._read_record(shard, record))
            payload = data[tfrecord.HEADER_BYTES : -tfrecord.FOOTER_BYTES]
            features = example_proto.find_features(payload, _NAME_FEATURES)
            for name in _NAME_FEATURES:
                if name in features:
                    start, end = example_proto.find_bytes(payload, features[name])
                    return os.fsdecode(bytes(payload[start:end]))
        return f"shard {shard}:{record}"

    def read(self, example: int) -> bytes:
        shard, record = self._locate(example)
        start, length = self._shards[shard].images[record].tolist()
        return self._read_record(shard, record)[start : start + length]

    def _read_record(self, shard: int, record: int) -> bytes:
        """Reads a record, header to footer, and verifies its checksums."""
        path, index = self._paths[shard], self._shards[shard]
        offset, end = index.offsets[record : record + 2].tolist()
        try:
            data = self._reader.read(path, offset, end - offset)
        except OSError as error:
            raise tfrecord.ShardError(path, offset, f"cannot be read ({error.strerror})") from error
        if len(data) < end - offset:
            raise tfrecord.ShardError(path, offset, "the file ends within a record")
        tfrecord.verify(data, path, offset)
        return data


class Shards(NamedTuple):
    """The shards in a folder.

    Attributes:
      splits: the paths of the complete set of shards of each split, in order.
      remarks: lines about what looks like shards and is not read.
    """

    splits: dict[str, list[str]]
    remarks: tuple[str, ...]


def find_shards(folder: str) -> Shards:
    """Finds the shards of each split.

    They are looked for in the folder itself and in its subfolders `train`, `validation`, `val` and
    `valid`.

    Raises:
      UserError: a shard is missing, or shards of two sets are mixed.
    """
    found: dict[str, dict[int, str]] = {}
    totals: dict[str, set[int]] = {}
    left_out = LeftOut()
    subfolders = [name for name in _SPLIT_OF if name in storage.list_folder(folder)]
    for place in (folder, *(os.path.join(folder, name) for name in subfolders)):
        for name in storage.list_folder(place) if storage.is_folder(place) else ():
            if is_hidden(name):
                continue
            match = _SHARD_NAME.match(name)
            if match is None:
                if _LIKE_SHARDS.search(name):
                    left_out.add(os.path.join(place, name), "of another split or name")
                continue
            split, number, total = _SPLIT_OF[match[1]], int(match[2]), int(match[3])
            if number in found.setdefault(split, {}):
                raise UserError(
                    f"{folder}: holds shard {number} of {split} twice. Remove one: "
                    f"{found[split][number]} or {os.path.join(place, name)}"
                )
            found[split][number] = os.path.join(place, name)
            totals.setdefault(split, set()).add(total)
    for split, counts in totals.items():
        if len(counts) > 1:
            raise UserError(
                f"{folder}: {split} shards are of {len(counts)} sets "
                f"(of {', '.join(map(str, sorted(counts)))}). Remove those that do not belong."
            )
        missing = sorted(set(range(max(counts))) - set(found[split]))
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {max(counts)} {split} shards are missing, "
                f"first number {missing[0]}. Copy them again."
            )
    splits = {split: [shards[i] for i in sorted(shards)] for split, shards in found.items()}
    remark = left_out.describe()
    return Shards(splits, (remark,) if remark else ())


def _check_against_manifest(
    folder: str,
    split: str,
    paths: Sequence[str],
    shards: Sequence[index.ShardIndex],
    expected: Sequence[manifest.Shard],
) -> None:
    """Raises UserError unless the shards hold what dataset.json says."""
    names = [os.path.basename(path) for path in paths]
    if names != [shard.file for shard in expected]:
        raise UserError(
            f"{folder}: the {split} shards are not those that {manifest.FILE_NAME} names. "
            "Copy the data set again."
        )
    for path, shard, wanted in zip(paths, shards, expected, strict=True):
        if (len(shard.labels), int(shard.offsets[-1])) != (
            wanted.examples,
            wanted.bytes,
        ):
            raise tfrecord.ShardError(
                path,
                int(shard.offsets[-1]),
                f"the shard holds {len(shard.labels)} examples in {shard.offsets[-1]} bytes, "
                f"where {manifest.FILE_NAME} says {wanted.examples} in {wanted.bytes}",
            )


def _label_offset(
    config: DataConfig, described: manifest.Manifest | None, stored: npt.NDArray[Any]
) -> int:
    """Returns the number that has to be subtracted from the stored labels."""
    if described is not None:
        background = names_of_background(config.label_offset, described.label_offset)
        return described.label_offset - len(background)
    smallest = int(stored.min())
    if config.label_offset is None and smallest != 0:
        raise UserError(
            f"--label_offset: must be given for {config.data_dir}, whose labels begin at "
            f"{smallest} and which has no {manifest.FILE_NAME}: 1 where the first class is 1 "
            "(tf-slim's and TPU's ImageNet), 0 where it is 0"
        )
    return config.label_offset or 0


def open_tfrecord(config: DataConfig) -> Source:
    """Opens the shards in `--data_dir`; scans them where no index is cached."""
    folder = config.data_dir or ""
    described = manifest.read_manifest(folder) if manifest.is_in(folder) else None
    paths, remarks = find_shards(folder)
    if not paths:
        more = f" ({remarks[0]})" if remarks else ""
        raise UserError(
            f"--data_dir: {folder} has no shards named like train-00000-of-01024{more}. "
            "scripts/make_tfrecords.py makes them from a folder of images."
        )
    indices = {split: index.load_index(paths[split], split=split) for split in sorted(paths)}
    if described is not None:
        for split in sorted({*described.splits, *paths}):
            expected = described.splits.get(split, ())
            _check_against_manifest(
                folder, split, paths.get(split, ()), indices.get(split, ()), expected
            )
    stored = {
        split: np.concatenate([shard.labels for shard in shards])
        for split, shards in indices.items()
    }
    offset = _label_offset(config, described, np.concatenate(list(stored.values())))
    splits = {
        split: ShardSplit(paths[split], indices[split], labels - offset)
        for split, labels in stored.items()
    }
    digest = hashlib.sha256()
    for split, shards in indices.items():
        for path, shard in zip(paths[split], shards, strict=True):
            digest.update(os.fsencode(os.path.basename(path)))
            digest.update(shard.offsets.tobytes() + shard.labels.tobytes())
    names = None
    if described is not None:
        names = (
            *names_of_background(config.label_offset, described.label_offset),
            *described.classes,
        )
    return Source(
        name="tfrecord",
        train=splits.get("train"),
        validation=splits.get("validation"),
        num_classes=len(names) if names else None,
        class_names=names,
        fingerprint=digest.hexdigest()[:16],
        remarks=remarks,
        turns_upright=described is not None,
    )
