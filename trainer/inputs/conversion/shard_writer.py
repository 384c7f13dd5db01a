"""A writer of one shard of a folder of images, with a receipt that tells that it is complete."""

import dataclasses
import io
import json
import os

import google_crc32c
from PIL import Image, UnidentifiedImageError

from trainer.inputs.images import encoded
from trainer.inputs.source import BadImageError
from trainer.inputs.sources import example_proto, storage, tfrecord
from trainer.process import files

# `encoded.MAX_PIXELS` takes the place of Pillow's own limit, which at first only warns.
Image.MAX_IMAGE_PIXELS = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to write.

    Attributes:
      path: the path of the shard.
      plan: the digest of all that the shards depend on.
      images: the path, name, label and class of each image.
    """

    path: str
    plan: str
    images: tuple[tuple[str, str, int, str], ...]


@dataclasses.dataclass(frozen=True)
class Receipt:
    """The result of a task.

    Attributes:
      plan: the task's plan.
      examples: the number of examples in the shard.
      bytes: the size of the shard.
      crc32c: the CRC-32C of all its bytes.
      unreadable: a line for each image that was left out.
      smallest_image, largest_image: the least and the greatest height and width, pixels.
    """

    plan: str
    examples: int
    bytes: int
    crc32c: int
    unreadable: tuple[str, ...]
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]


def _as_readable(data: bytes) -> tuple[bytes, encoded.ImageHeader]:
    """Returns an image in a format that training reads: as it is where it has one, else as PNG.

    Raises:
      BadImageError: it cannot be decoded.
    """
    if encoded.is_readable(data):
        encoded.read_header(data)  # An image that is too large is refused before it is decoded.
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > encoded.MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height} pixels")
            image.load()  # To the last byte, so that a truncated image is found.
            if not encoded.is_readable(data):
                out = io.BytesIO()
                image.convert("RGB").save(out, "PNG")  # Changes no pixel of the first frame.
                data = out.getvalue()
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImageError(str(error)) from error
    return data, encoded.read_header(data)


def _record(image: tuple[str, str, int, str]) -> tuple[bytes, encoded.ImageHeader]:
    """Returns an image's record, with ImageNet's names of features, and the image's header."""
    path, name, label, class_name = image
    try:
        data, header = _as_readable(storage.read_file(path))
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})") from error
    features: dict[str, bytes | int] = {
        "image/class/label": label,
        "image/class/text": class_name.encode(errors="surrogateescape"),
        "image/filename": name.encode(errors="surrogateescape"),
        "image/format": encoded.FORMATS[header.decoder].name.encode(),
        "image/height": header.height,
        "image/width": header.width,
        "image/encoded": data,
    }
    return tfrecord.frame(example_proto.serialize(features)), header


def receipt_path(shard: str) -> str:
    """Returns the path of the receipt of the shard with this path."""
    return os.path.join(os.path.dirname(shard), f".{os.path.basename(shard)}.receipt")


def convert_shard(task: Task) -> Receipt:
    """Writes one shard and its receipt. It may run in a process of its own."""
    crc, size, heights, widths, unreadable = 0, 0, [], [], []
    with files.replacing(task.path) as temporary, open(temporary, "wb") as file:
        for image in task.images:
            try:
                record, header = _record(image)
            except BadImageError as error:
                unreadable.append(f"{image[0]!r}: {error}")
                continue
            file.write(record)
            crc = google_crc32c.extend(crc, record)
            size += len(record)
            heights.append(header.height)
            widths.append(header.width)
    receipt = Receipt(
        plan=task.plan,
        examples=len(heights),
        bytes=size,
        crc32c=crc,
        unreadable=tuple(unreadable),
        smallest_image=(min(heights, default=0), min(widths, default=0)),
        largest_image=(max(heights, default=0), max(widths, default=0)),
    )
    storage.write_file(receipt_path(task.path), json.dumps(dataclasses.asdict(receipt)).encode())
    return receipt


def find_receipt(task: Task) -> Receipt | None:
    """Reads the receipt of a task whose shard an earlier run has completed; else returns None."""
    try:
        receipt = Receipt(**json.loads(storage.read_file(receipt_path(task.path))))
        is_whole = os.path.getsize(task.path) == receipt.bytes
    except (OSError, ValueError, TypeError):
        return None
    return receipt if is_whole and receipt.plan == task.plan else None
