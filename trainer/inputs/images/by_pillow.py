"""Size, orientation and pixels of an image by Pillow: of formats that no graph operation decodes.

An image is decoded whole, in Python, though without its lock.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, __version__

from trainer.inputs.images.orientation import EXIF, LAST, TAG, UPRIGHT, read_tiff_orientation
from trainer.inputs.source import BadImageError

# 360 MB of RGB. ImageNet's largest photograph has 61 million pixels, and those of cameras and
# telephones with large sensors have 102 and 108 million.
MAX_PIXELS = 120_000_000

# Modes of Pillow whose pixels become 8 bits of red, green and blue by themselves.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
# 16 bits of grey, or 12 of a TIFF's.
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_WHITE_IS_ZERO = 0  # TIFF 6.0, PhotometricInterpretation.
# What Pillow's decoders raise for damaged data, as seen with damaged files of each format.
_DAMAGES = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
)

# `MAX_PIXELS` takes the place of Pillow's own limit, which at first only warns.
Image.MAX_IMAGE_PIXELS = None


@contextlib.contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Opens an encoded image, whose pixels are not decoded yet.

    Raises:
      BadImageError: it cannot be opened or, inside of the block, decoded; or it has no pixels or
        more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(image.height, image.width)
            if image.format == "TIFF":  # Which Pillow would turn by XMP, too, where it is decoded.
                image.info.pop("xmp", None)
            yield image
    except UnidentifiedImageError as error:
        raise BadImageError(f"not an image that Pillow {__version__} reads") from error
    except _DAMAGES as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def check_size(height: int, width: int) -> None:
    """Raises BadImageError for an image without pixels, or with more than MAX_PIXELS."""
    if not 0 < height * width <= MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, where 1 to {MAX_PIXELS} are allowed")


def read_shape(data: bytes) -> tuple[int, int, int]:
    """Returns height and width, pixels, and the EXIF orientation, 1 to 8, which is 1 without one.

    Raises:
      BadImageError: Pillow cannot open the image.
    """
    with open_image(data) as image:
        return image.height, image.width, orientation_of(image)


def is_turned_by_pillow(image: Image.Image) -> bool:
    """Returns whether an opened image, not decoded yet, is stored turned, and Pillow turns it."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and tags.get(TAG) in range(UPRIGHT + 1, LAST + 1)


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of an opened image, 1 to 8, by which it has to be turned."""
    if image.format == "TIFF":  # Pillow itself turns it upright.
        return UPRIGHT
    # Not `getexif`, which takes XMP for EXIF and raises where a block is damaged.
    block = image.info.get("exif") or b""
    return read_tiff_orientation(block.removeprefix(EXIF))


def decode(data: bytes) -> npt.NDArray[Any]:
    """Decodes the first frame of an image: uint8 [height, width, 3].

    Raises:
      BadImageError: it cannot be decoded, or its pixels have no range that could be scaled.
    """
    with open_image(data) as image:
        image.load()  # To the last byte, so that a truncated image is found.
        return np.asarray(as_rgb(image))


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns a decoded image with 8 bits of red, green and blue.

    Raises:
      BadImageError: its pixels have no range that could be scaled.
    """
    if image.mode in _DEEP_MODES:
        levels = np.asarray(image).astype(np.uint32)
        white = _brightest(image)
        if _is_negative(image):
            levels = white - levels
        grey = (levels * 255 + white // 2) // white
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in _MODES:
        image.info.pop("transparency", None)  # It is left out; of a palette Pillow would warn.
        return image.convert("RGB")
    raise BadImageError(
        f"pixels of Pillow's mode {image.mode}, which cannot be turned into red, green "
        "and blue of 8 bits as they are. Save it with such"
    )


def _brightest(image: Image.Image) -> int:
    """Returns the level of white: a TIFF of 12 bits has the mode of 16, and its own levels."""
    bits = getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    return 2 ** bits[0] - 1


def _is_negative(image: Image.Image) -> bool:
    """Returns whether 0 is white in a TIFF of 16 bits; at 8 bits, Pillow turns it round itself."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
