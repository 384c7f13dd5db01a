"""The numbers of the decoders in the graph, one for each format and ratio of reduction.

Formats at their whole size come first, in the order of the table; then those that are reduced.
Formats that Pillow decodes have none: the graph gets their pixels (`encoded.RAW`), or has Python
decode them (`encoded.BY_PILLOW`).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.inputs.images import encoded

# By how much a decoder may reduce an image (libjpeg's scale_denom).
RATIOS = (1, 2, 4, 8)


@functools.cache
def _number(formats: tuple[encoded.Format, ...]) -> Mapping[tuple[int, int], int]:
    """Returns the number of each decoder by (place of the format, ratio)."""
    whole = [(place, 1) for place, row in enumerate(formats) if row.decode is not None]
    reduced = [
        (place, ratio)
        for ratio in RATIOS[1:]
        for place, row in enumerate(formats)
        if row.decode_reduced is not None
    ]
    return {key: number for number, key in enumerate((*whole, *reduced))}


def number_of(place: int, ratio: int) -> int:
    """Returns the number of a decoder.

    Args:
      place: the format's place in `encoded.FORMATS`, or RAW.
      ratio: 1, 2, 4 or 8.

    Returns:
      The number; RAW where the graph gets pixels, BY_PILLOW where Pillow decodes the format.
    """
    return int(numbers_of([place], [ratio])[0])


def numbers_of(places: Sequence[int], ratios: Sequence[int]) -> npt.NDArray[Any]:
    """Returns the number of the decoder of each of n images, as `number_of`: int32 [n]."""
    numbers = _number(encoded.FORMATS)
    found = [
        encoded.RAW if key[0] == encoded.RAW else numbers.get(key, encoded.BY_PILLOW)
        for key in zip(places, ratios, strict=True)
    ]
    return np.array(found, np.int32)


def split(number: int) -> tuple[int, int]:
    """Returns the format's place and the ratio of a decoder: the inverse of `number_of`."""
    return list(_number(encoded.FORMATS))[number]


def create_functions(resize: str) -> list[encoded.Decode]:
    """Returns the functions that add the decoders to a graph, in the order of their numbers.

    Args:
      resize: the way of resizing. antialias: JPEGs are decoded exactly, and may be reduced;
        bilinear: they are decoded as by default.
    """
    functions: list[encoded.Decode] = []
    for place, ratio in _number(encoded.FORMATS):
        row = encoded.FORMATS[place]
        if resize == "antialias" and row.decode_reduced is not None:
            functions.append(functools.partial(row.decode_reduced, ratio))
        elif ratio == 1 and row.decode is not None:
            functions.append(row.decode)
    return functions
