"""A writer of one shard of a folder of images, with a receipt that tells that it is complete."""

import dataclasses
import io
import json
import os

import google_crc32c
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from trainer.inputs.conversion.judge import load_decoder
from trainer.inputs.images import encoded
from trainer.inputs.source import BadImageError
from trainer.inputs.sources import example_proto, storage, tfrecord
from trainer.process import files, json_files

# Modes of Pillow whose pixels become 8 bits of red, green and blue by themselves.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
# 16 bits of grey, or 12 of a TIFF's.
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_WHITE_IS_ZERO = 0  # TIFF 6.0, PhotometricInterpretation.

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

    Whether it is good is for training's own decoder to say, since others take other images.

    Raises:
      BadImageError: it cannot be decoded.
    """
    if encoded.is_readable(data):
        try:
            header = encoded.read_header(data)
        except encoded.UndecodableKindError as error:
            try:
                data = _convert_to_png(data)
            except BadImageError:
                raise error from None
        else:
            load_decoder().decode(data, header)
            return data, header
    else:
        data = _convert_to_png(data)
    return data, encoded.read_header(data)


def _convert_to_png(data: bytes) -> bytes:
    """Returns the first frame of an image as PNG: 8 bits, red, green and blue.

    Raises:
      BadImageError: it cannot be decoded, or its pixels have no range that could be scaled.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > encoded.MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height} pixels")
            image.load()  # To the last byte, so that a truncated image is found.
            if image.mode in _DEEP_MODES:
                levels = np.asarray(image).astype(np.uint32)
                white = _brightest(image)
                if _is_negative(image):
                    levels = white - levels
                grey = (levels * 255 + white // 2) // white
                pixels = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            elif image.mode in _MODES:
                pixels = image.convert("RGB")
            else:
                raise BadImageError(
                    f"pixels of Pillow's mode {image.mode}, which cannot be turned into red, green "
                    "and blue of 8 bits as they are. Save it with such"
                )
            out = io.BytesIO()
            # Pixels alone: a profile of other colours would be a warning at each decoding.
            Image.fromarray(np.asarray(pixels)).save(out, "PNG")
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise BadImageError(str(error)) from error
    return out.getvalue()


def _brightest(image: Image.Image) -> int:
    """Returns the level of white: a TIFF of 12 bits has the mode of 16, and its own levels."""
    bits = getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    return 2 ** bits[0] - 1


def _is_negative(image: Image.Image) -> bool:
    """Returns whether 0 is white in a TIFF of 16 bits; at 8 bits, Pillow turns it round itself."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO


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
        content = storage.read_file(receipt_path(task.path))
        receipt = json_files.build(Receipt, json_files.parse(content))
        is_whole = os.path.getsize(task.path) == receipt.bytes
    except (OSError, json_files.FormatError):
        return None
    return receipt if is_whole and receipt.plan == task.plan else None
