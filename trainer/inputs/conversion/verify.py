"""Verification of a whole data set, which scripts/verify_dataset.py prints."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import tqdm

from trainer.inputs.conversion.judge import load_decoder
from trainer.inputs.images import by_pillow
from trainer.inputs.images.encoded import ImageHeader, is_decoded_in_the_graph, read_header
from trainer.inputs.images.orientation import UPRIGHT
from trainer.inputs.source import BadImageError
from trainer.inputs.sources import index, listing, manifest, shards, storage, tfrecord

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PIECE_BYTES = 1 << 20
# Without 0xFF, which would begin a marker.
_MORE_DATA = np.random.default_rng(0).integers(0xFF, size=256, dtype=np.uint8).tobytes()


def _is_stored_turned(data: bytes, header: ImageHeader) -> bool:
    """Returns whether an image is stored turned or mirrored, whoever turns it upright."""
    if header.orientation != UPRIGHT or is_decoded_in_the_graph(data):
        return header.orientation != UPRIGHT
    with by_pillow.open_image(data) as image:
        return by_pillow.is_turned_by_pillow(image)


class Verdict(NamedTuple):
    """The result for one shard, or for one class of a folder.

    Attributes:
      split: the split that it belongs to.
      examples: the number of its examples.
      faults: a line for each fault.
      turned: the number of images that are stored turned or mirrored, by their EXIF orientation.
    """

    split: str
    examples: int
    faults: tuple[str, ...]
    turned: int = 0


class Verifier:
    """A verifier of one data set. Several threads may call its methods.

    Attributes:
      remarks: lines about what of the folder is not read.
    """

    def __init__(
        self,
        data_dir: str,
        *,
        decode_every: int = 1,
        thorough: bool = False,
        follow_links: bool = False,
    ) -> None:
        """Opens the data set.

        Args:
          data_dir: the folder of shards, with or without a manifest, or of images.
          decode_every: decode one image in this many.
          thorough: look for JPEGs that are cut off and have an end all the same, which takes twice
            the time.
          follow_links: whether links may lead out of a folder of images.

        Raises:
          UserError: the data set is incomplete, or is none.
        """
        data_dir = storage.normalize(data_dir)
        self._data_dir = data_dir
        self._decode_every = decode_every
        self._thorough = thorough
        self._decoder = load_decoder()
        self._manifest = manifest.read_manifest(data_dir) if manifest.is_in(data_dir) else None
        self._shards, self.remarks = shards.find_shards(data_dir)
        self._images: dict[str, dict[str, list[str]]] = {}
        self._classes_at_fault: list[str] = []
        if not self._shards and self._manifest is None:
            images = listing.list_images(
                data_dir, 0.0, follow_links=follow_links, faults=self._classes_at_fault
            )
            self._images, self.remarks = images.splits, images.remarks

    def run(self, threads: int) -> Iterator[Verdict]:
        """Yields the verdict on each shard, or on each class of a folder, in order."""
        units: list[Callable[[], Verdict]] = []
        for split, paths in self._shards.items():
            units += [functools.partial(self.verify_shard, split, path) for path in paths]
        for split, classes in self._images.items():
            units += [
                functools.partial(self.verify_files, split, files) for files in classes.values()
            ]
        yield from self._missing_shards()
        for fault in self._classes_at_fault:
            yield Verdict(next(iter(self._images)), 0, (fault,))
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            verdicts = pool.map(lambda unit: unit(), units)
            yield from tqdm.tqdm(verdicts, "Verifying", len(units), disable=None)

    def _missing_shards(self) -> Iterator[Verdict]:
        """Yields a verdict for each shard that the manifest names and that is not there."""
        there = {os.path.basename(path) for paths in self._shards.values() for path in paths}
        for split, named in (self._manifest.splits if self._manifest else {}).items():
            for shard in named:
                if shard.file not in there:
                    path = os.path.join(self._data_dir, shard.file)
                    yield Verdict(split, 0, (f"{path}: is missing",))

    def verify_files(self, split: str, paths: Iterable[str]) -> Verdict:
        """Verifies image files."""
        faults, count, turned = [], 0, 0
        for count, path in enumerate(paths, 1):
            try:
                turned += self._verify_image(storage.read_file(path), count - 1)
            except (BadImageError, OSError) as error:
                faults.append(f"{path}: {error}")
        return Verdict(split, count, tuple(faults), turned)

    def _verify_image(self, data: bytes, number: int) -> bool:
        """Returns whether an image is stored turned; raises BadImageError for a bad one."""
        header = read_header(data)
        if number % self._decode_every == 0:
            pixels = self._decoder.decode(data, header)
            if self._thorough and data.startswith(_JPEG_START):
                self._find_missing_rows(data, header, pixels)
        return _is_stored_turned(data, header)

    def _find_missing_rows(
        self, data: bytes, header: ImageHeader, pixels: npt.NDArray[Any]
    ) -> None:
        """Raises BadImageError for a JPEG whose data end before its last row.

        The decoder fills such rows with grey, and only warns. But it would take more data, if there
        were any, and other rows would come of them; while nothing comes of data behind a whole
        image's.
        """
        end = data.rfind(_JPEG_END)
        if end < 0:
            return
        longer = data[:end] + _MORE_DATA + data[end:]
        changed = np.any(self._decoder.decode(longer, header) != pixels, axis=(1, 2))
        if changed.any():
            raise BadImageError(
                f"a JPEG whose data end at about row {int(np.argmax(changed))} of {header.height}"
            )

    def verify_shard(self, split: str, path: str) -> Verdict:
        """Verifies one shard: checksums, labels, images, and agreement with the manifest."""
        try:
            buffer = storage.map_file(path)
        except OSError as error:
            return Verdict(split, 0, (f"{path}: {error}",))
        faults, count, turned = [], 0, 0
        try:
            for count, (offset, data) in enumerate(tfrecord.scan(buffer, path), 1):
                end = offset + tfrecord.HEADER_BYTES + len(data) + tfrecord.FOOTER_BYTES
                try:
                    tfrecord.verify(bytes(buffer[offset:end]), path, offset)
                    turned += self._verify_example(data, count - 1)
                except tfrecord.ShardError as error:
                    faults.append(error.fault)
                except (BadImageError, ValueError) as error:
                    faults.append(f"{path}: record {count - 1} at byte {offset}: {error}")
        except (
            tfrecord.ShardError
        ) as error:  # Of a length: the place of the next record is unknown.
            faults.append(error.fault)
        if not count and not faults:
            faults.append(f"{path}: the shard is empty")
        faults += self._compare_with_manifest(path, buffer, count)
        return Verdict(split, count, tuple(faults), turned)

    def _verify_example(self, data: memoryview, number: int) -> bool:
        start, length, label = index.find_image(data)
        if self._manifest is not None:
            last = self._manifest.label_offset + len(self._manifest.classes) - 1
            if not self._manifest.label_offset <= label <= last:
                raise ValueError(
                    f"label {label}, where {self._manifest.label_offset} to {last} are classes"
                )
        return self._verify_image(bytes(data[start : start + length]), number)

    def _compare_with_manifest(self, path: str, buffer: memoryview, count: int) -> list[str]:
        named = self._manifest.splits if self._manifest else {}
        expected = {shard.file: shard for part in named.values() for shard in part}
        name = os.path.basename(path)
        if name not in expected:
            return [f"{path}: is not named in {manifest.FILE_NAME}"] if self._manifest else []
        shard, faults = expected[name], []
        if (count, len(buffer)) != (shard.examples, shard.bytes):
            faults.append(
                f"{path}: byte {len(buffer)}: {count} examples in {len(buffer)} bytes, where "
                f"{manifest.FILE_NAME} says {shard.examples} in {shard.bytes}"
            )
        if _checksum(buffer) != shard.crc32c:
            faults.append(f"{path}: its checksum is not the one in {manifest.FILE_NAME}")
        return faults


def _checksum(buffer: memoryview) -> int:
    """Returns the CRC-32C of a file that may be larger than the memory, piece by piece."""
    crc = 0
    for start in range(0, len(buffer), _PIECE_BYTES):
        crc = google_crc32c.extend(crc, bytes(buffer[start : start + _PIECE_BYTES]))
    return int(crc)
