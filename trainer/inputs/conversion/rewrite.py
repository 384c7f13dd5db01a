"""Changes to an image on its way into a shard: none where training reads it as it is."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin

from trainer.inputs.conversion.judge import load_decoder
from trainer.inputs.images import by_pillow, encoded, orientation
from trainer.inputs.images.orientation import UPRIGHT
from trainer.inputs.source import BadImageError

DEFAULT_QUALITY = 95
# A picture is decoded at a size of at least this many times the wanted one, before it is resized:
# from 2 on, by Pillow's documentation of `reducing_gap`, the result is close to that of all pixels.
_GAP = 2.0
# Modes of Pillow of which means of pixels are pixels between them, and which profiles describe.
_MODES = ("RGB", "L", "CMYK")
# Of `JpegImagePlugin.get_sampling`: a colour for each pixel, and for four of them.
_ALL_COLOURS, _QUARTER_OF_COLOURS = 0, 2
_TABLE_OF_A_COMPONENT = 3  # Of `JpegImageFile.layer`: its number, two samplings, its table.
_LONGEST_JPEG = 65_500  # libjpeg's JPEG_MAX_DIMENSION.

TURNED = "turned upright, as their EXIF orientation says"
SMALLER = "made smaller"
TO_SRGB = "turned from other colours into sRGB"
CONVERTED = "of other formats turned into PNG"


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """The changes to images that a user asks for.

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
        try:
            return _encode_anew(data, rewriting, None)
        except BadImageError:
            # Told as training tells it: what it is, or whose format it has, and what is wrong.
            load_decoder().decode(data, encoded.read_header(data))
            raise
    try:
        header = encoded.read_header(data)
    except encoded.UndecodableKindError as error:
        try:
            return _encode_anew(data, rewriting, None)
        except BadImageError:
            raise error from None
    size = header.width, header.height
    if rewriting.shorter_side is not None and (
        rewriting.makes_smaller(size) or _has_other_colours(data)
    ):
        return _by_pillow(data, header, lambda data: _encode_anew(data, rewriting, header))
    load_decoder().decode(data, header)
    if header.orientation == UPRIGHT:
        return Rewritten(data, header, ())
    return _by_pillow(data, header, lambda data: _turn(data, header))


def _by_pillow(
    data: bytes, header: encoded.ImageHeader, encode: Callable[[bytes], Rewritten]
) -> Rewritten:
    """Encodes an image anew by Pillow, from the pixels that training's decoder reads.

    Pillow reads the same, but for JPEGs of arithmetic coding, which it does not know, and for CMYK
    ones without an Adobe marker, whose inks it takes the other way round.
    """
    try:
        with by_pillow.open_image(data) as image:
            is_alike = image.mode != "CMYK" or "adobe" in image.info
        if is_alike:
            return encode(data)
    except BadImageError:
        pass
    png = io.BytesIO()
    Image.fromarray(load_decoder().decode(data, header)).save(png, "PNG")
    return encode(png.getvalue())


def _turn(data: bytes, header: encoded.ImageHeader) -> Rewritten:
    """Encodes a JPEG or PNG anew that is stored turned or mirrored."""
    with by_pillow.open_image(data) as image:
        options: dict[str, Any] = {"format": "PNG"}
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            options = _options_of_turned_jpeg(image, header)
        image.load()
        pixels = image if image.mode in ("L", "RGB") else by_pillow.as_rgb(image)
        return _finish(pixels, header.orientation, options, (TURNED,))


def _options_of_turned_jpeg(
    image: JpegImagePlugin.JpegImageFile, header: encoded.ImageHeader
) -> dict[str, Any]:
    """Returns the options of saving with which a JPEG stays nearly as it was.

    Where its blocks are whole, turned ones have the same frequencies, of which its own tables drop
    none. At the border of another, blocks begin elsewhere than before.
    """
    sampling = JpegImagePlugin.get_sampling(image)
    block = 16 if sampling == _QUARTER_OF_COLOURS else 8
    options: dict[str, Any] = {"format": "JPEG"}
    if image.mode in ("L", "RGB"):
        options["icc_profile"] = image.info.get("icc_profile")
    is_kept = sampling in (_ALL_COLOURS, _QUARTER_OF_COLOURS) or image.mode == "L"
    if not is_kept or header.height % block or header.width % block:
        return {**options, "quality": DEFAULT_QUALITY, "subsampling": _ALL_COLOURS}
    # Of the brightness and, where there are colours, of the first of them.
    components = [component[_TABLE_OF_A_COMPONENT] for component in image.layer[:2]]
    tables = [np.reshape(image.quantization[table], (8, 8)) for table in components]
    if orientation.transposes(header.orientation):
        tables = [table.T for table in tables]
    return {
        **options,
        "qtables": [table.ravel().tolist() for table in tables],
        "subsampling": max(sampling, _ALL_COLOURS),
    }


def _encode_anew(
    data: bytes, rewriting: Rewriting, header: encoded.ImageHeader | None
) -> Rewritten:
    """Encodes an image anew, upright: as JPEG where it is one or becomes smaller, else as PNG.

    Args:
      data: the encoded image.
      rewriting: what is wanted.
      header: the header of the image that it was made of, where the graph decodes its format.

    Raises:
      BadImageError: Pillow cannot decode it.
    """
    with by_pillow.open_image(data) as image:
        stored = header.orientation if header else by_pillow.orientation_of(image)
        is_turned = stored != UPRIGHT or by_pillow.is_turned_by_pillow(image)
        changes = [] if header else [CONVERTED]
        profile = image.info.get("icc_profile")
        is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        if rewriting.makes_smaller(image.size):
            is_jpeg = True
            changes = [SMALLER]
            pixels = _shrink(image, rewriting.shorter_side or 0)
        else:
            image.load()  # To the last byte, so that a truncated image is found.
            pixels = image
        in_srgb = _to_srgb(pixels, profile) if rewriting.shorter_side is not None else None
        if in_srgb is not None:
            changes.append(TO_SRGB)
        pixels = in_srgb or by_pillow.as_rgb(pixels)
        if is_turned:
            changes.append(TURNED)
        options: dict[str, Any] = {"format": "PNG"}
        if is_jpeg and max(pixels.size) <= _LONGEST_JPEG:
            # With fewer colours than pixels, small details of colour would lose 8 dB.
            options = {"format": "JPEG", "quality": rewriting.quality, "subsampling": _ALL_COLOURS}
        return _finish(pixels, stored, options, tuple(changes))


def _finish(
    image: Image.Image, stored: int, options: Mapping[str, Any], changes: tuple[str, ...]
) -> Rewritten:
    """Encodes the pixels of an image of the orientation `stored` upright, with these options."""
    out = io.BytesIO()
    # Pixels alone: metadata would turn them once more, and of some profiles libpng warns each time.
    pixels = orientation.turn_upright(np.asarray(image), stored)
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, **options)
    data = out.getvalue()
    return Rewritten(data, encoded.read_header(data), changes)


def _shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    """Returns a smaller image, each of whose pixels is an average; large JPEGs are not all decoded.

    The size is that of the image as it is stored. The filter is `Image.thumbnail`'s default: of
    photographs, Lanczos makes no better ones (they differ by 54 dB) and takes 10 ms longer for 12
    megapixels.
    """
    width, height = image.size
    scale = shorter_side / min(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if image.mode not in _MODES:
        return _plain(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=_GAP)
    drafted = image.draft("", (int(size[0] * _GAP), int(size[1] * _GAP)))
    return image.resize(
        size, Image.Resampling.BICUBIC, box=drafted and drafted[1], reducing_gap=_GAP
    )


def _plain(image: Image.Image) -> Image.Image:
    """Returns a decoded image in one of `_MODES`: without palette, transparency and 16 bits.

    A grey one stays grey, as the profile of a grey one needs it.

    Raises:
      BadImageError: its pixels have no range that could be scaled.
    """
    if image.mode in _MODES:
        return image
    is_grey = image.getbands()[0] in ("1", "L", "I")
    rgb = by_pillow.as_rgb(image)
    return rgb.getchannel(0) if is_grey else rgb


def _has_other_colours(data: bytes) -> bool:
    """Returns whether an image that Pillow opens has a profile of other colours than sRGB's."""
    with contextlib.suppress(BadImageError), by_pillow.open_image(data) as image:
        return _read_profile(image.info.get("icc_profile")) is not None
    return False


def _read_profile(profile: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """Returns a profile of other colours than sRGB's; None: there is none, or it is damaged."""
    if not profile:
        return None
    try:
        read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return None if "sRGB" in ImageCms.getProfileDescription(read) else read
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Returns an image with other colours than sRGB's in sRGB; None: it has no such colours."""
    source = _read_profile(profile)
    if source is None:
        return None
    try:
        return ImageCms.profileToProfile(
            _plain(image), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):  # It is one of another kind of image.
        return None
