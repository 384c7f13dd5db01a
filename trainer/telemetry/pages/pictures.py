"""Draws pictures for TensorBoard's Images tab."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow.compat.v1 as tf1
from PIL import Image, ImageDraw

from trainer.telemetry.pages import fonts
from trainer.telemetry.pages.fonts import Line

_TILE_PIXELS = 96  # Least width of an image in a sheet, so that its caption fits.
_LINE_PIXELS = 14
_CELL_PIXELS = 34
_NAME_PIXELS = 150  # Of a class, at most, beside the confusion matrix.
_DARK, _GREY, _LIGHT = (20, 20, 20), (100, 100, 100), (255, 255, 255)


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


def draw_sheet(
    images: Sequence[npt.NDArray[Any]], captions: Sequence[str], names: Sequence[str] = ()
) -> Image.Image:
    """Draws images side by side, each with a caption below.

    Args:
      images: uint8 [height, width, 3] each, all of one size; at least one.
      captions: caption of each image, of one or more lines.
      names: name of each image, below its caption; of a long one, the end. Empty: none has one.
    """
    height, width = images[0].shape[:2]
    scale = max(1, math.ceil(_TILE_PIXELS / width))
    size = (scale * width, scale * height)
    texts = [
        [(fonts.fit(line, size[0]), _DARK) for line in caption.split("\n")] for caption in captions
    ]
    for lines, name in zip(texts, names, strict=False):
        lines.append((fonts.fit(name, size[0], keeps_end=True), _GREY))
    tile = (size[0] + 4, size[1] + 4 + max(map(len, texts)) * _LINE_PIXELS)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * tile[0], rows * tile[1]), _LIGHT)
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, lines) in enumerate(zip(images, texts, strict=True)):
        left, top = number % columns * tile[0] + 2, number // columns * tile[1] + 2
        sheet.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (left, top))
        for row, (line, colour) in enumerate(lines):
            place = (left, top + size[1] + row * _LINE_PIXELS)
            draw.text(place, line.text, colour, font=line.font)
    return sheet


def draw_confusion(counts: npt.NDArray[Any], names: Sequence[str]) -> Image.Image:
    """Draws a confusion matrix: a row per label, a column per prediction, darker where larger.

    Args:
      counts: int [classes, classes]: number of examples of each label with each prediction.
      names: names of the classes.
    """
    classes = len(counts)
    numbers = [str(number) for number in range(classes)]
    names = ["" if name == number else name for number, name in zip(numbers, names, strict=True)]
    rows = [
        fonts.fit(f"{number} {name}".rstrip(), _NAME_PIXELS)
        for number, name in zip(numbers, names, strict=True)
    ]
    columns = [fonts.fit(name, _NAME_PIXELS) for name in names]
    title = fonts.fit("rows: label, columns: prediction", _NAME_PIXELS * 2)
    margin = 10 + max(line.pixels for line in rows)
    top = 2 * _LINE_PIXELS + 8 + max(line.pixels for line in columns)
    size = classes * _CELL_PIXELS
    width = max(margin + size, title.pixels + 4) + 4
    picture = Image.new("RGB", (width, top + size + 4), _LIGHT)
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), title.text, _DARK, font=title.font)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    for row in range(classes):
        centre = margin + row * _CELL_PIXELS + _CELL_PIXELS // 2
        draw.text((centre, top - 4), numbers[row], _DARK, font=title.font, anchor="ms")
        _draw_upwards(picture, columns[row], centre, top - _LINE_PIXELS)
        middle = top + row * _CELL_PIXELS + _CELL_PIXELS // 2
        draw.text((margin - 4, middle), rows[row].text, _DARK, font=rows[row].font, anchor="rm")
        for column in range(classes):
            corner = (margin + column * _CELL_PIXELS, top + row * _CELL_PIXELS)
            _draw_cell(draw, corner, int(counts[row, column]), float(shares[row, column]))
    return picture


def _draw_upwards(picture: Image.Image, line: Line, centre: int, bottom: int) -> None:
    """Draws a line of text that is read from below, above a place in a picture."""
    if not line.text:
        return
    shape = Image.new("L", (line.pixels + 2, _LINE_PIXELS))
    ImageDraw.Draw(shape).text((1, _LINE_PIXELS // 2), line.text, 255, font=line.font, anchor="lm")
    turned = shape.transpose(Image.Transpose.ROTATE_90)
    picture.paste(_DARK, (centre - turned.width // 2, bottom - turned.height), turned)


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
