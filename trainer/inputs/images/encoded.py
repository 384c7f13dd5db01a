"""The table of image formats, and the headers of encoded images.

JPEGs and PNGs are decoded by C++ operations in the graph, other formats by Pillow. The header tells
what has to be known before: which format an image has, whatever its file is called; where a crop
may lie; which side is up; and whether a small file would decode to more pixels than any training
image has. TensorFlow is imported only where a graph is built, so that programs which only read
headers start at once.
"""

import functools
import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from trainer.inputs.images import by_pillow
from trainer.inputs.images.orientation import EXIF, UPRIGHT, read_tiff_orientation
from trainer.inputs.source import BadImageError

if TYPE_CHECKING:
    import tensorflow as tf

# In place of a format's place, or a decoder's number: the pixels themselves, uint8, row after row.
RAW = -1
# In place of a decoder's number, where the graph calls Python for one image after the other: of an
# encoded image, or of the number of an example, which is read once more.
BY_PILLOW = -2
AGAIN = -3

# Start-of-frame markers (ITU-T T.81, B.1): 0xC0 to 0xCF without tables (C4, CC), reserved is C8.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Of those that the decoder knows: baseline, extended and progressive, Huffman or arithmetic coding.
_DECODABLE_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
# Markers that stand alone: TEM, and RST0 to RST7.
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_WITHOUT_SEGMENT = WITHOUT_LENGTH | {0}  # A zero is no marker.
_LENGTH = struct.Struct(">H")
_FRAME = struct.Struct(">2xBHH")  # After a length: bits, height, width (B.2.2).
_JPEG_BITS = 8
_VOWELS = "AEIOU"
START_OF_SCAN = 0xDA
APP1 = 0xE1

# The first bytes of every image of the format.
JPEG_BEGINNING = b"\xff\xd8"
PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES = len(PNG_BEGINNING)
PNG_CHUNK_BYTES = 12  # Of a chunk without its data: length, type and checksum.


Decode = Callable[["tf.Tensor", "tf.Tensor"], "tf.Tensor"]


class Format(NamedTuple):
    """A format of images that training reads.

    Attributes:
      name: the name in messages, after "a", and in the shards' feature `image/format`.
      signature: a regular expression of the bytes with which an encoded image begins.
      suffixes: the ends of the names of files, in lower case.
      read_shape: the function from an encoded image to its height and width in pixels, as stored,
        and its EXIF orientation, 1 to 8. It raises BadImageError where the header is damaged.
      decode: the function that adds a decoder of a part of an image to the current graph: from the
        encoded image (string, scalar) and the window (int32 [4]: top, left, height, width) to
        uint8 [height, width, 3]. A damaged image has to end in InvalidArgumentError. None: Pillow
        decodes the whole image, before the graph gets it.
      decode_reduced: as `decode`, as exactly as the decoder can, of an image that is reduced to
        1 / ratio, the first argument (1, 2, 4 or 8); the window is one of the reduced image. None:
        the format has no such decoder.
    """

    name: str
    signature: bytes
    suffixes: tuple[str, ...]
    read_shape: Callable[[bytes], tuple[int, int, int]] = by_pillow.read_shape
    decode: Decode | None = None
    decode_reduced: Callable[[int, "tf.Tensor", "tf.Tensor"], "tf.Tensor"] | None = None


class ImageHeader(NamedTuple):
    """The facts about an image that have to be known before it is decoded.

    Attributes:
      format: the format's place in FORMATS. RAW: the image is decoded already.
      height, width: the size of the image as it is stored, pixels.
      orientation: the EXIF orientation, 1 to 8. 1: the image is stored upright.
    """

    format: int
    height: int
    width: int
    orientation: int = UPRIGHT


def crop(pixels: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    """Cuts a window (int32 [4]: top, left, height, width) out of an image that is decoded whole."""
    import tensorflow as tf

    top, left, height, width = tf.unstack(window)
    return tf.slice(pixels, [top, left, 0], [height, width, 3])


class UndecodableKindError(BadImageError):
    """A good image of a kind of its format that training's decoder does not know."""


def _read_jpeg_shape(data: bytes) -> tuple[int, int, int]:
    """Reads the size from the first start of a frame, and the orientation before it.

    Bytes between segments are passed over, as the decoder does.
    """
    position, orientation = 2, None
    try:
        while True:
            position = data.index(b"\xff", position)
            while (marker := data[position]) == 0xFF:
                position += 1
            start = position + 1  # Of what comes after the marker: a segment's length.
            if marker in START_OF_FRAME:
                depth, height, width = _FRAME.unpack_from(data, start)
                _check_kind(marker, depth)
                return height, width, orientation or UPRIGHT
            if marker == START_OF_SCAN:
                break
            length = 0 if marker in _WITHOUT_SEGMENT else _LENGTH.unpack_from(data, start)[0]
            position = start + length
            # The first EXIF segment (EXIF 2.32, 4.7.2).
            if marker == APP1 and orientation is None and data.startswith(EXIF, start + 2):
                orientation = read_tiff_orientation(data[start + 2 + len(EXIF) : position])
    except (IndexError, ValueError, struct.error):
        pass  # As where the image begins before its size is known.
    raise BadImageError("a JPEG that ends within its header")


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


def _decode_reduced_jpeg(ratio: int, contents: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    """Decodes little more than the window, of each block a part of the frequencies.

    The accurate transform takes as long as the default, by which pictures are darker by 0.7 to 0.8
    levels (docs/behaviours.md).
    """
    import tensorflow as tf

    return tf.io.decode_and_crop_jpeg(
        contents, window, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
    )


def _read_png_shape(data: bytes) -> tuple[int, int, int]:
    """Reads the size from the IHDR chunk, which comes first, and the orientation."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise BadImageError("a damaged PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width, _read_png_orientation(data)


def _read_png_orientation(data: bytes) -> int:
    """Reads the orientation from the eXIf chunk (PNG, third edition, 11.3.4.4)."""
    if b"eXIf" not in data:
        return UPRIGHT
    position = PNG_HEADER_BYTES
    while position + PNG_CHUNK_BYTES <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return read_tiff_orientation(data[position + 8 : position + 8 + length])
        position += PNG_CHUNK_BYTES + length
    return UPRIGHT


def _decode_png(contents: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    return crop(tf.io.decode_png(contents, channels=3), window)


# A format's place is its number in the graph, which compares in this order: most frequent first.
FORMATS = (
    Format(
        "JPEG",
        re.escape(JPEG_BEGINNING),
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        _read_jpeg_shape,
        _decode_jpeg,
        _decode_reduced_jpeg,
    ),
    Format(
        "PNG",
        re.escape(PNG_BEGINNING),
        (".png",),
        _read_png_shape,
        _decode_png,
    ),
    Format("WebP", rb"RIFF....WEBP", (".webp",)),
    Format("GIF", rb"GIF8[79]a", (".gif",)),
    Format("BMP", rb"BM", (".bmp", ".dib")),
    Format("TIFF", rb"II\*\0|MM\0\*|II\+\0|MM\0\+", (".tif", ".tiff")),
    # Its first brand may be that of all such containers; its own is then among those behind it.
    Format(
        "AVIF",
        rb"....ftyp(avi[fs]|(mif[12]|msf1|miaf)....((?!meta)....){0,30}?avi[fs])",
        (".avif",),
    ),
    Format("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", (".jp2", ".j2k")),
)


class _ForeignFormat(NamedTuple):
    """A format that training does not read, but calls by its name when it refuses a file.

    Attributes:
      name: the name in messages.
      signature: as in `Format`.
    """

    name: str
    signature: bytes


_FOREIGN_FORMATS = (
    _ForeignFormat("a HEIC", rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif[12]|msf1|miaf)"),
    _ForeignFormat("a JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    _ForeignFormat("a Photoshop file", rb"8BPS"),
    _ForeignFormat("gzip data", rb"\x1f\x8b"),
)


def _none_of_the_formats() -> str:
    """Returns the names of FORMATS in words, such as "neither JPEG nor PNG"."""
    *names, last = (image_format.name for image_format in FORMATS)
    return f"neither {', '.join(names)} nor {last}"


def image_suffixes() -> tuple[str, ...]:
    """Returns the ends of the names of image files that training reads, in lower case."""
    return tuple(suffix for row in FORMATS for suffix in row.suffixes)


@functools.cache
def _compile(signature: bytes) -> re.Pattern[bytes]:
    return re.compile(signature, re.DOTALL)


def _begins(data: bytes, signature: bytes) -> bool:
    return _compile(signature).match(data) is not None


def _find_format(data: bytes) -> int | None:
    """Returns the place in FORMATS of an image's format, or None where it is none of them."""
    for number, image_format in enumerate(FORMATS):
        if _begins(data, image_format.signature):
            return number
    return None


def _unreadable(data: bytes) -> BadImageError:
    """Returns the error that says what the data is instead of an image that training reads."""
    if not data:
        return BadImageError("0 bytes")
    reason, foreign = _none_of_the_formats(), _name_foreign(data)
    if foreign is not None:
        return BadImageError(f"{foreign}, {reason}")
    return BadImageError(f"{reason}: it begins with {data[:12]!r}")


def _name_foreign(data: bytes) -> str | None:
    """Returns what data is of a format that training does not read; None: nothing that is known."""
    names = (row.name for row in _FOREIGN_FORMATS if _begins(data, row.signature))
    return next(names, None)


def describe_beginning(data: bytes) -> str | None:
    """Returns what a file is that has no image's name, and what to do; None: it is no image.

    Args:
      data: its first bytes, 256 or more where it has so many.
    """
    number, foreign = _find_format(data), _name_foreign(data)
    if number is not None:
        name = FORMATS[number].name
        return f"{_with_article(name)}: give it a name that ends in {FORMATS[number].suffixes[0]}"
    return foreign and f"{foreign}, which is not read: save such files as JPEG or PNG"


def read_header(data: bytes) -> ImageHeader:
    """Reads format, size and orientation of an encoded image.

    Raises:
      BadImageError: it has none of FORMATS, its header is damaged, or it has no pixels or more than
        MAX_PIXELS.
    """
    number = _find_format(data)
    if number is None:
        raise _unreadable(data)
    try:
        height, width, orientation = FORMATS[number].read_shape(data)
    except BadImageError as error:
        if FORMATS[number].decode is not None:
            raise
        raise name_format(error, number) from error
    by_pillow.check_size(height, width)
    return ImageHeader(number, height, width, orientation)


def name_format(error: BadImageError, place: int) -> BadImageError:
    """Returns an error of Pillow with the format that the image has before its message."""
    return BadImageError(f"{_with_article(FORMATS[place].name)}: {error}")


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in _VOWELS else 'a'} {name}"


def is_decoded_in_the_graph(data: bytes) -> bool:
    """Returns whether an image's format has a decoder for the graph, whatever its file is called.

    Such images are quick to read: their decoder needs no Python, and may decode a part.
    """
    number = _find_format(data)
    return number is not None and FORMATS[number].decode is not None
