"""The table of image formats, and the headers of encoded images.

The pixels are decoded by C++ operations. The header tells what has to be known before: which format
an image has, whatever its file is called; where a crop may lie; and whether a small file would
decode to more pixels than any training image has. TensorFlow is imported only where a graph is
built, so that programs which only read headers start at once.
"""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from trainer.inputs.source import BadImageError

if TYPE_CHECKING:
    import tensorflow as tf

# 300 MB of RGB; ImageNet's largest photograph has 61 million pixels.
MAX_PIXELS = 100_000_000

# In place of a format's number: the pixels themselves, uint8, row after row.
RAW = -1

# Start-of-frame markers (ITU-T T.81, B.1): 0xC0 to 0xCF without tables (C4, CC), reserved is C8.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Of those that the decoder knows: baseline, extended and progressive, Huffman or arithmetic coding.
_DECODABLE_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
# Markers that stand alone: TEM, and RST0 to RST7.
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_BITS = 8


class Format(NamedTuple):
    """A format of images that training reads.

    Attributes:
      name: the name in messages, after "a", and in the shards' feature `image/format`.
      signatures: the bytes with which an encoded image begins: one of these.
      suffixes: the ends of the names of files, in lower case.
      read_size: the function from an encoded image to its (height, width) in pixels. It raises
        BadImageError where the header is damaged.
      decode: the function that adds a decoder of a part of an image to the current graph: from the
        encoded image (string, scalar) and the window (int32 [4]: top, left, height, width) to
        uint8 [height, width, 3]. A damaged image has to end in InvalidArgumentError.
    """

    name: str
    signatures: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    read_size: Callable[[bytes], tuple[int, int]]
    decode: Callable[["tf.Tensor", "tf.Tensor"], "tf.Tensor"]


class ImageHeader(NamedTuple):
    """What has to be known of an image before it is decoded.

    Attributes:
      decoder: the format's place in FORMATS. RAW: the image is decoded already.
      height, width: the size of the image, pixels.
    """

    decoder: int
    height: int
    width: int


def crop(pixels: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    """Cuts a window (int32 [4]: top, left, height, width) out of an image that is decoded whole."""
    import tensorflow as tf

    top, left, height, width = tf.unstack(window)
    return tf.slice(pixels, [top, left, 0], [height, width, 3])


class UndecodableKindError(BadImageError):
    """A good image of a kind of its format that training's decoder does not know."""


def _read_jpeg_size(data: bytes) -> tuple[int, int]:
    """Reads height and width from the first start-of-frame segment.

    Bytes between segments are passed over, as the decoder does.
    """
    position = 2
    try:
        while True:
            position = data.index(b"\xff", position)
            while data[position] == 0xFF:
                position += 1
            marker = data[position]
            position += 1
            if marker in _START_OF_FRAME:
                depth, height, width = struct.unpack_from(">BHH", data, position + 2)
                _check_kind(marker, depth)
                return height, width
            if marker and marker not in _WITHOUT_LENGTH:
                position += struct.unpack_from(">H", data, position)[0]
    except (IndexError, ValueError, struct.error) as error:
        raise BadImageError("a JPEG that ends within its header") from error


def _check_kind(marker: int, depth: int) -> None:
    """Raises UndecodableKindError for JPEGs that the decoder does not know."""
    if marker in _LOSSLESS_FRAMES:
        kind = "a lossless JPEG"
    elif depth != _JPEG_BITS:
        kind = f"a JPEG of {depth} bits"
    elif marker not in _DECODABLE_FRAMES:
        kind = "a hierarchical JPEG"
    else:
        return
    raise UndecodableKindError(
        f"{kind}, where training reads those of {_JPEG_BITS} bits that are baseline or "
        "progressive. Save it as PNG"
    )


def _decode_jpeg(contents: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    """Decodes little more than the window."""
    import tensorflow as tf

    return tf.io.decode_and_crop_jpeg(contents, window, channels=3)


def _read_png_size(data: bytes) -> tuple[int, int]:
    """Reads height and width from the IHDR chunk, which comes first."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise BadImageError("a damaged PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _decode_png(contents: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    return crop(tf.io.decode_png(contents, channels=3), window)


# A format's place is its number in the graph, which compares in this order: most frequent first.
FORMATS = (
    Format(
        "JPEG",
        (b"\xff\xd8",),
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        _read_jpeg_size,
        _decode_jpeg,
    ),
    Format("PNG", (b"\x89PNG\r\n\x1a\n",), (".png",), _read_png_size, _decode_png),
)


class _ForeignFormat(NamedTuple):
    """A format that training does not read, but calls by its name when it refuses a file."""

    name: str
    signatures: tuple[bytes, ...]
    suffixes: tuple[str, ...]


_FOREIGN_FORMATS = (
    _ForeignFormat("a GIF", (b"GIF8",), (".gif",)),
    _ForeignFormat("a BMP", (b"BM",), (".bmp",)),
    _ForeignFormat("a WebP", (b"RIFF",), (".webp",)),
    _ForeignFormat("a TIFF", (b"II*\x00", b"MM\x00*"), (".tif", ".tiff")),
    _ForeignFormat("gzip data", (b"\x1f\x8b",), ()),
)


def format_names(conjunction: str) -> str:
    """Returns the names of FORMATS as a sentence lists them, such as "JPEG or PNG"."""
    *names, last = (image_format.name for image_format in FORMATS)
    return f"{', '.join(names)} {conjunction} {last}"


def image_suffixes() -> tuple[str, ...]:
    """Returns the ends of the names of image files, in lower case.

    Those of formats that training does not read are among them: such a file is then refused by
    name, instead of being left out without a word.
    """
    rows = (*FORMATS, *_FOREIGN_FORMATS)
    return tuple(dict.fromkeys(suffix for row in rows for suffix in row.suffixes))


def _find_format(data: bytes) -> int | None:
    """Returns the place in FORMATS of an image's format, or None where it is none of them."""
    for number, image_format in enumerate(FORMATS):
        if data.startswith(image_format.signatures):
            return number
    return None


def is_readable(data: bytes) -> bool:
    """Returns whether training reads images of this format, whatever the file is called."""
    return _find_format(data) is not None


def _unreadable(data: bytes) -> BadImageError:
    """Returns the error that says what the data is instead of an image that training reads."""
    if not data:
        return BadImageError("0 bytes")
    reason = f"neither {format_names('nor')}"
    for name, signatures, _ in _FOREIGN_FORMATS:
        if data.startswith(signatures):
            return BadImageError(f"{name}, {reason} (scripts/make_tfrecords.py converts)")
    return BadImageError(f"{reason}: it begins with {data[:12]!r}")


def read_header(data: bytes) -> ImageHeader:
    """Reads format and size of an encoded image.

    Raises:
      BadImageError: it has none of FORMATS, its header is damaged, or it has no pixels or more than
        MAX_PIXELS.
    """
    number = _find_format(data)
    if number is None:
        raise _unreadable(data)
    height, width = FORMATS[number].read_size(data)
    if not 0 < height * width <= MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, where 1 to {MAX_PIXELS} are allowed")
    return ImageHeader(number, height, width)
