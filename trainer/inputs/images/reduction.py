"""The part of a stored image that is decoded, and its size, for a window of the upright image."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.inputs.images import encoded, orientation
from trainer.inputs.images.encoded import RAW, ImageHeader
from trainer.inputs.images.graph_decoders import RATIOS, numbers_of

# A window is decoded at a size of at least this many times the network's. From 1.5 on, what is
# antialiased from the reduced window is within 40 dB of what comes of the full one, also for
# pebbles; see docs/experiments.md, "Pictures of cameras".
GAP = 1.5
# By how much sides may shrink and be resized by quicker filters than the triangle, since they are
# close to it there: by less than this as means of areas, by up to this from four neighbours.
MUCH = 2
LITTLE = 1.2


class Filter(enum.IntEnum):
    """The way in which a decoded part becomes as large as the network's input.

    BILINEAR: each pixel lies between four neighbours. AREA: it is the mean of the area that it
    covers. TRIANGLE: a mean over twice that width in each direction, weighted by closeness, which
    is Pillow's bilinear filter.
    """

    BILINEAR = 0
    AREA = 1
    TRIANGLE = 2


class Parts(NamedTuple):
    """The parts of n images to decode; see `pixels.Rows` for each of them.

    Attributes:
      decoders: int32 [n].
      windows: int32 [n, 4].
      crops: float32 [n, 4].
      filters: int32 [n].
      turns: int32 [n].
    """

    decoders: npt.NDArray[Any]
    windows: npt.NDArray[Any]
    crops: npt.NDArray[Any]
    filters: npt.NDArray[Any]
    turns: npt.NDArray[Any]


def find_parts(
    headers: Sequence[ImageHeader], windows: npt.NDArray[Any], config: DataConfig
) -> Parts:
    """Finds what to decode for windows of upright images.

    Args:
      headers: the headers of n images.
      windows: top, left, height and width of each window in the upright image: int32 [n, 4].
      config: the size of the network's input, and the way of resizing.
    """
    formats, heights, widths, orientations = np.array(headers).T
    turns = orientation.turns(orientations)
    upright = orientation.upright_sizes(heights, widths, orientations)
    windows = orientation.stored_windows(windows, *upright, turns)
    crops = np.zeros(windows.shape, np.float32)
    crops[:, 2:] = windows[:, 2:]
    ratios = [1] * len(headers)
    filters: npt.NDArray[Any] = np.full(len(headers), Filter.BILINEAR, np.int32)
    if config.resize == "antialias":
        filters = _choose_filters(windows[:, 2:] / config.image_size)
        # The greatest ratio at which a window is at least GAP times the network's size.
        largest = windows[:, 2:].min(axis=1) / (GAP * config.image_size)
        windows = windows.copy()
        for row in np.flatnonzero(largest >= RATIOS[1]).tolist():
            if formats[row] == RAW or encoded.FORMATS[formats[row]].decode_reduced is None:
                continue
            ratio = max(ratio for ratio in RATIOS if ratio <= largest[row])
            windows[row], crops[row] = _reduce(windows[row], headers[row], ratio)
            ratios[row] = ratio
    return Parts(numbers_of(formats.tolist(), ratios), windows, crops, filters, turns)


def _choose_filters(shrinks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the filter for each window by how many of its pixels become one, down and across.

    docs/experiments.md, "Pictures of cameras", has how close they come and how long they take.
    """
    least, most = shrinks.min(axis=1), shrinks.max(axis=1)
    filters = np.full(len(shrinks), Filter.TRIANGLE, np.int32)
    filters[(least >= 1) & (most < MUCH)] = Filter.AREA
    filters[most <= LITTLE] = Filter.BILINEAR
    return filters


def _reduce(
    window: npt.NDArray[Any], header: ImageHeader, ratio: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns the pixels of a reduced image that hold a window, and the window within them.

    A reduced image has height / ratio rows, rounded up.
    """
    start, end = window[:2] / ratio, (window[:2] + window[2:]) / ratio
    last = np.ceil(np.array([header.height, header.width]) / ratio)
    first = np.floor(start)
    shape = np.minimum(np.ceil(end), last) - first
    return np.concatenate([first, shape]), np.concatenate([start - first, end - start])
