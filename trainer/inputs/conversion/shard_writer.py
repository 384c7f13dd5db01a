"""A writer of one shard of a folder of images, with a receipt that tells that it is complete."""

import collections
import dataclasses
import json
import os

import google_crc32c

from trainer.inputs.conversion.rewrite import KEEP_SIZES, Rewriting, rewrite
from trainer.inputs.images import encoded
from trainer.inputs.source import BadImageError
from trainer.inputs.sources import example_proto, storage, tfrecord
from trainer.process import files, json_files


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to write.

    Attributes:
      path: the path of the shard.
      digest: the digest of all that the shards depend on.
      images: the path, name, label and class of each image.
      rewriting: the changes to each image.
    """

    path: str
    digest: str
    images: tuple[tuple[str, str, int, str], ...]
    rewriting: Rewriting = KEEP_SIZES


@dataclasses.dataclass(frozen=True)
class Receipt:
    """The result of a task.

    Attributes:
      plan: the task's digest, named as in receipts of earlier versions.
      examples: the number of examples in the shard.
      bytes: the size of the shard.
      crc32c: the CRC-32C of all its bytes.
      unreadable: a line for each image that was left out.
      changes: the number of images that each change was made in, by its name in messages.
      smallest_image, largest_image: the least and the greatest height and width, pixels.
    """

    plan: str
    examples: int
    bytes: int
    crc32c: int
    unreadable: tuple[str, ...]
    changes: dict[str, int]
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]


def _record(
    image: tuple[str, str, int, str], rewriting: Rewriting
) -> tuple[bytes, encoded.ImageHeader, tuple[str, ...]]:
    """Returns an image's record, with ImageNet's names of features, its header and its changes."""
    path, name, label, class_name = image
    try:
        data, header, changes = rewrite(storage.read_file(path), rewriting)
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})") from error
    features: dict[str, bytes | int] = {
        "image/class/label": label,
        "image/class/text": class_name.encode(errors="surrogateescape"),
        "image/filename": name.encode(errors="surrogateescape"),
        "image/format": encoded.FORMATS[header.format].name.encode(),
        "image/height": header.height,
        "image/width": header.width,
        "image/encoded": data,
    }
    return tfrecord.frame(example_proto.serialize(features)), header, changes


def receipt_path(shard: str) -> str:
    """Returns the path of the receipt of the shard with this path."""
    return os.path.join(os.path.dirname(shard), f".{os.path.basename(shard)}.receipt")


def convert_shard(task: Task) -> Receipt:
    """Writes one shard and its receipt. It may run in a process of its own."""
    crc, size, heights, widths, unreadable = 0, 0, [], [], []
    counts: collections.Counter[str] = collections.Counter()
    with files.replacing(task.path) as temporary, open(temporary, "wb") as file:
        for image in task.images:
            try:
                record, header, changes = _record(image, task.rewriting)
            except BadImageError as error:
                unreadable.append(f"{image[0]!r}: {error}")
                continue
            file.write(record)
            crc = google_crc32c.extend(crc, record)
            size += len(record)
            counts.update(changes)
            heights.append(header.height)
            widths.append(header.width)
    receipt = Receipt(
        plan=task.digest,
        examples=len(heights),
        bytes=size,
        crc32c=crc,
        unreadable=tuple(unreadable),
        changes=dict(counts),
        smallest_image=(min(heights, default=0), min(widths, default=0)),
        largest_image=(max(heights, default=0), max(widths, default=0)),
    )
    write_receipt(task.path, receipt)
    return receipt


def write_receipt(path: str, receipt: Receipt) -> None:
    """Writes the receipt of the shard at `path`."""
    storage.write_file(receipt_path(path), json.dumps(dataclasses.asdict(receipt)).encode())


def find_receipt(task: Task) -> Receipt | None:
    """Reads the receipt of a task whose shard an earlier run has completed; else returns None.

    A shard without some of its images is not complete: what could not be read then, perhaps for
    want of permission, may be mended without a new time of change.
    """
    try:
        content = storage.read_file(receipt_path(task.path))
        receipt = json_files.build(Receipt, json_files.parse(content))
        is_whole = os.path.getsize(task.path) == receipt.bytes
    except (OSError, json_files.FormatError):
        return None
    is_complete = is_whole and not receipt.unreadable
    return receipt if is_complete and receipt.plan == task.digest else None
