"""What an encoded image says of itself in its first bytes: format, height and width.

Decoding is C++'s; this is what has to be known before: which decoder fits (names lie), where a
crop may lie, and whether a small file would unfold into more memory than any training image needs.
"""

import struct
from typing import NamedTuple

from trainer.inputs.source import BadImageError

JPEG, PNG, RAW = range(3)  # Decoders, see `pixels.decode_window`.

# 300 MB of RGB; ImageNet's largest photograph has 61 million pixels.
MAX_PIXELS = 100_000_000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# Start-of-frame markers: 0xC0 to 0xCF without tables (C4, CC) and the reserved C8.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_OTHER_SIGNATURES = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP",
    b"II*\x00": "a TIFF",
    b"MM\x00*": "a TIFF",
    b"\x1f\x8b": "gzip data",
}


class ImageHeader(NamedTuple):
    """Decoder (JPEG, PNG or RAW), and the size in pixels."""

    decoder: int
    height: int
    width: int


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width from the first start-of-frame segment."""
    position = 2
    try:
        while True:
            if data[position] != 0xFF:
                raise BadImageError("a damaged JPEG header")
            while data[position] == 0xFF:
                position += 1
            marker = data[position]
            if marker in _START_OF_FRAME:
                return struct.unpack_from(">HH", data, position + 4)
            position += 1 + int.from_bytes(data[position + 1 : position + 3], "big")
    except (IndexError, struct.error) as error:
        raise BadImageError("a JPEG that ends within its header") from error


def _png_size(data: bytes) -> tuple[int, int]:
    """Height and width from the IHDR chunk, which comes first."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise BadImageError("a damaged PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def is_readable(data: bytes) -> bool:
    """Whether training reads images of this format, whatever the file is called."""
    return data.startswith((_JPEG_SIGNATURE, _PNG_SIGNATURE))


def _unreadable(data: bytes) -> BadImageError:
    if not data:
        return BadImageError("0 bytes")
    for signature, name in _OTHER_SIGNATURES.items():
        if data.startswith(signature):
            return BadImageError(
                f"{name}, neither JPEG nor PNG (scripts/make_tfrecords.py converts)"
            )
    return BadImageError(f"neither JPEG nor PNG: it begins with {data[:12]!r}")


def read_header(data: bytes) -> ImageHeader:
    """Format and size of an encoded image.

    Raises:
      BadImageError: it is neither JPEG nor PNG, its header is damaged, or it has no pixels or
        more than MAX_PIXELS.
    """
    if data.startswith(_JPEG_SIGNATURE):
        decoder, (height, width) = JPEG, _jpeg_size(data)
    elif data.startswith(_PNG_SIGNATURE):
        decoder, (height, width) = PNG, _png_size(data)
    else:
        raise _unreadable(data)
    if not 0 < height * width <= MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, where 1 to {MAX_PIXELS} are allowed")
    return ImageHeader(decoder, height, width)
