"""What becomes of an image on its way into a shard: nothing, where training reads it as it is."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin

from trainer.inputs.conversion.judge import load_decoder
from trainer.inputs.images import by_pillow, encoded
from trainer.inputs.images.orientation import UPRIGHT
from trainer.inputs.source import BadImageError

DEFAULT_QUALITY = 95
# A picture is decoded at a size of at least this many times the wanted one, before it is resized:
# from 2 on, by Pillow's documentation of `reducing_gap`, the result is close to that of all pixels.
_GAP = 2.0
_MODES = ("RGB", "L", "CMYK", "YCbCr")  # Of Pillow: means of their pixels are pixels between them.
# Of `JpegImagePlugin.get_sampling`: a colour for each pixel, and for four of them.
_ALL_COLOURS, _QUARTER_OF_COLOURS = 0, 2
# The turn of each EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_TRANSPOSING = 5  # This orientation and those after it exchange height and width.

TURNED = "turned upright, as their EXIF orientation says"
SMALLER = "made smaller"
TO_SRGB = "turned from other colours into sRGB"
CONVERTED = "of other formats turned into PNG"


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What a user wants to become of images.

    Attributes:
      shorter_side: the shorter side of larger images afterwards, pixels. None: sizes stay.
      quality: the quality of JPEGs that are encoded anew, 1 to 100.
    """

    shorter_side: int | None = None
    quality: int = DEFAULT_QUALITY

    def makes_smaller(self, size: tuple[int, int]) -> bool:
        """Returns whether an image of this size (pixels) is to be made smaller."""
        return self.shorter_side is not None and min(size) > self.shorter_side


KEEP_SIZES = Rewriting()


class Rewritten(NamedTuple):
    """An image for a shard.

    Attributes:
      data: the encoded image.
      header: its header.
      changes: the names in messages of the changes that were made.
    """

    data: bytes
    header: encoded.ImageHeader
    changes: tuple[str, ...]


def rewrite(data: bytes, rewriting: Rewriting) -> Rewritten:
    """Returns an image upright, in a format that the graph decodes, and no larger than wanted.

    Whether an image that stays as it is, is good is for training's own decoder to say, since others
    take other images.

    Raises:
      BadImageError: it cannot be decoded.
    """
    if not encoded.is_decoded_in_the_graph(data):
        return _encode_anew(data, rewriting)
    try:
        header = encoded.read_header(data)
    except encoded.UndecodableKindError as error:
        try:
            return _encode_anew(data, rewriting)
        except BadImageError:
            raise error from None
    if rewriting.makes_smaller((header.width, header.height)):
        try:
            return _encode_anew(data, rewriting)
        except BadImageError:  # Of a kind that Pillow does not know, or damaged.
            png = io.BytesIO()
            Image.fromarray(load_decoder().decode(data, header)).save(png, "PNG")
            return _encode_anew(png.getvalue(), rewriting)
    load_decoder().decode(data, header)
    return Rewritten(data, header, ()) if header.orientation == UPRIGHT else _turn(data, header)


def _turn(data: bytes, header: encoded.ImageHeader) -> Rewritten:
    """Encodes a JPEG or PNG anew that is stored turned or mirrored."""
    turn = _TURNS[header.orientation]
    try:
        with by_pillow.open_image(data) as image:
            options: dict[str, Any] = {"format": "PNG"}
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                options = _options_of_turned_jpeg(image, header)
            image.load()
            pixels = image if image.mode in ("L", "RGB") else by_pillow.as_rgb(image)
            return _finish(pixels.transpose(turn), options, (TURNED,))
    except BadImageError:  # Of a kind that Pillow does not know.
        pixels = Image.fromarray(load_decoder().decode(data, header))
        return _finish(pixels.transpose(turn), {"format": "PNG"}, (TURNED,))


def _options_of_turned_jpeg(
    image: JpegImagePlugin.JpegImageFile, header: encoded.ImageHeader
) -> dict[str, Any]:
    """Returns the options of saving with which a JPEG stays nearly as it was.

    Where its blocks are whole, turned ones have the same frequencies, of which its own tables drop
    none. At the border of another, blocks begin elsewhere than before.
    """
    sampling = JpegImagePlugin.get_sampling(image)
    block = 16 if sampling == _QUARTER_OF_COLOURS else 8
    options = {"format": "JPEG", "icc_profile": image.info.get("icc_profile")}
    is_kept = sampling in (_ALL_COLOURS, _QUARTER_OF_COLOURS) or image.mode == "L"
    if not is_kept or header.height % block or header.width % block:
        return {**options, "quality": DEFAULT_QUALITY, "subsampling": _ALL_COLOURS}
    tables = [np.reshape(table, (8, 8)) for table in image.quantization.values()]
    if header.orientation >= _FIRST_TRANSPOSING:
        tables = [table.T for table in tables]
    return {
        **options,
        "qtables": [table.ravel().tolist() for table in tables],
        "subsampling": max(sampling, _ALL_COLOURS),
    }


def _encode_anew(data: bytes, rewriting: Rewriting) -> Rewritten:
    """Encodes an image anew, upright: as JPEG where it becomes smaller, else as PNG.

    Raises:
      BadImageError: Pillow cannot decode it.
    """
    with by_pillow.open_image(data) as image:
        turn = _TURNS.get(by_pillow.orientation_of(image))
        options: dict[str, Any] = {"format": "PNG"}
        changes = [CONVERTED]
        profile = image.info.get("icc_profile")
        if rewriting.makes_smaller(image.size):
            options = {"format": "JPEG", "quality": rewriting.quality, "subsampling": _ALL_COLOURS}
            changes = [SMALLER]
            pixels = _shrink(image, rewriting.shorter_side or 0)
        else:
            image.load()  # To the last byte, so that a truncated image is found.
            pixels = image
        in_srgb = _to_srgb(pixels, profile)
        if in_srgb is not None:
            changes.append(TO_SRGB)
        pixels = in_srgb or by_pillow.as_rgb(pixels)
        if turn is not None:
            pixels = pixels.transpose(turn)
            changes.append(TURNED)
        return _finish(pixels, options, tuple(changes))


def _finish(pixels: Image.Image, options: Mapping[str, Any], changes: tuple[str, ...]) -> Rewritten:
    """Encodes pixels, and nothing that is not said in the options."""
    out = io.BytesIO()
    # Pixels alone: metadata would turn them once more, and of some profiles libpng warns each time.
    Image.fromarray(np.asarray(pixels)).save(out, **options)
    data = out.getvalue()
    return Rewritten(data, encoded.read_header(data), changes)


def _shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    """Returns a smaller image, each of whose pixels is an average; large JPEGs are not all decoded.

    The size is that of the image as it is stored.
    """
    width, height = image.size
    scale = shorter_side / min(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if image.mode not in _MODES:
        return by_pillow.as_rgb(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=_GAP)
    drafted = image.draft("", (int(size[0] * _GAP), int(size[1] * _GAP)))
    return image.resize(
        size, Image.Resampling.LANCZOS, box=drafted and drafted[1], reducing_gap=_GAP
    )


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Returns an image with other colours than sRGB's in sRGB; None: it has no such colours."""
    if not profile or image.mode not in ("RGB", "L", "CMYK"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):  # A profile that is damaged says nothing.
        return None
