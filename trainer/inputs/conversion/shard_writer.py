"""Writes one shard of a folder of images, with a receipt that says that it is complete."""

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

# `encoded.MAX_PIXELS` takes the place of Pillow's limit, which only warns at first.
Image.MAX_IMAGE_PIXELS = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to write: its path, and the path, name, label and class of each image."""

    path: str
    plan: str
    images: tuple[tuple[str, str, int, str], ...]


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What became of a task. `unreadable` has one line per image that was left out."""

    plan: str
    examples: int
    bytes: int
    crc32c: int
    unreadable: tuple[str, ...]
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]


def _trainable(data: bytes) -> tuple[bytes, encoded.ImageHeader]:
    """The image in a form that training reads, which it is left in where it has it.

    Raises:
      BadImageError: it cannot be decoded.
    """
    if encoded.is_readable(data):
        encoded.read_header(data)  # Refuses what is too large, before it is decoded.
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > encoded.MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height} pixels")
            image.load()  # To the last byte: a truncated image is found here.
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
    """The framed example of one image, in ImageNet's feature names."""
    path, name, label, class_name = image
    try:
        data, header = _trainable(storage.read_file(path))
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
    """Where the receipt of the shard with this path is."""
    return os.path.join(os.path.dirname(shard), f".{os.path.basename(shard)}.receipt")


def convert_shard(task: Task) -> Receipt:
    """Writes one shard and its receipt. Runs in a process of its own."""
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
    """The receipt of a shard that an earlier run completed for the same plan."""
    try:
        receipt = Receipt(**json.loads(storage.read_file(receipt_path(task.path))))
        is_whole = os.path.getsize(task.path) == receipt.bytes
    except (OSError, ValueError, TypeError):
        return None
    return receipt if is_whole and receipt.plan == task.plan else None
