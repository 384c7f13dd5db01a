"""Draws pictures for TensorBoard's Images tab."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow.compat.v1 as tf1
from PIL import Image, ImageDraw

_TILE_PIXELS = 96  # Least width of an image in a sheet, so that its caption fits.
_LINE_PIXELS = 14
_CELL_PIXELS = 34
_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)


def build_image(tag: str, picture: Image.Image) -> tf1.Summary:
    """Returns a summary with a picture as PNG."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    summary = tf1.Summary()
    summary.value.add(
        tag=tag,
        image=tf1.Summary.Image(
            width=picture.width,
            height=picture.height,
            colorspace=3,
            encoded_image_string=data.getvalue(),
        ),
    )
    return summary


def draw_sheet(images: Sequence[npt.NDArray[Any]], captions: Sequence[str]) -> Image.Image:
    """Draws images side by side, each with a caption below.

    Args:
      images: uint8 [height, width, 3] each, all of one size; at least one.
      captions: caption of each image, of one or more lines.
    """
    height, width = images[0].shape[:2]
    scale = max(1, math.ceil(_TILE_PIXELS / width))
    lines = max(caption.count("\n") + 1 for caption in captions)
    tile = (scale * width + 4, scale * height + 4 + lines * _LINE_PIXELS)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * tile[0], rows * tile[1]), _LIGHT)
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = number % columns * tile[0] + 2, number // columns * tile[1] + 2
        size = (scale * width, scale * height)
        sheet.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (left, top))
        draw.multiline_text((left, top + size[1]), caption, _DARK, spacing=2)
    return sheet


def draw_confusion(counts: npt.NDArray[Any], names: Sequence[str]) -> Image.Image:
    """Draws a confusion matrix: a row per label, a column per prediction, darker where larger.

    Args:
      counts: int [classes, classes]: number of examples of each label with each prediction.
      names: names of the classes.
    """
    classes = len(counts)
    texts = [
        str(number) if name == str(number) else f"{number} {name[:24]}"
        for number, name in enumerate(names)
    ]
    title = "rows: label, columns: prediction"
    margin = 10 + max(map(_text_pixels, texts))
    top = 2 * _LINE_PIXELS + 8
    size = classes * _CELL_PIXELS
    width = max(margin + size, _text_pixels(title) + 4) + 4
    picture = Image.new("RGB", (width, top + size + 4), _LIGHT)
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), title, _DARK)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    for row in range(classes):
        place = margin + row * _CELL_PIXELS
        draw.text((place + _CELL_PIXELS // 2, top - 4), str(row), _DARK, anchor="ms")
        middle = top + row * _CELL_PIXELS + _CELL_PIXELS // 2
        draw.text((margin - 4, middle), texts[row], _DARK, anchor="rm")
        for column in range(classes):
            corner = (margin + column * _CELL_PIXELS, top + row * _CELL_PIXELS)
            _draw_cell(draw, corner, int(counts[row, column]), float(shares[row, column]))
    return picture


def _text_pixels(text: str) -> int:
    """Returns the width of a line of text."""
    return round(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text))


def _draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], count: int, share: float
) -> None:
    """Draws a cell of the matrix: its count, on a shade of blue for its share of the row."""
    left, top = corner
    shade = tuple(round(255 - share * (255 - dark)) for dark in (8, 48, 107))
    box = (left, top, left + _CELL_PIXELS, top + _CELL_PIXELS)
    draw.rectangle(box, fill=shade, outline=(225, 225, 225))
    if count:
        middle = (left + _CELL_PIXELS // 2, top + _CELL_PIXELS // 2)
        draw.text(middle, str(count), _LIGHT if share > 0.5 else _DARK, anchor="mm")
