"""EXIF orientation: how a stored image has to be turned to be upright (EXIF 2.32, tag 0x0112).

A turn is three bits. The image is transposed first (4), then turned upside down (2), then mirrored
(1); a random mirror afterwards changes the last bit. Windows are chosen in the upright image and
decoded from the stored one; only what the network gets is turned, which is much smaller.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

UPRIGHT, LAST = 1, 8  # The first orientation, and the last.
MIRRORED = 1
UPSIDE_DOWN = 2
TRANSPOSED = 4
TURNS = 8  # How many there are, from 0 on.
_FIRST_TRANSPOSED = 5  # This orientation and those after it exchange height and width.
# The turn of each orientation. Of 0, which is none: no turn.
_TURNS = np.array([0, 0, 1, 3, 2, 4, 5, 7, 6], np.int32)

EXIF = b"Exif\0\0"  # What comes before the TIFF header in a JPEG (EXIF 2.32, 4.7.2).
TAG = 0x0112
ENTRY_BYTES = 12
SHORT, LONG = 3, 4
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def read_tiff_orientation(block: bytes) -> int:
    """Returns the orientation in a TIFF header with its first directory, which is EXIF's form.

    A block that is damaged, or has no orientation, is one of an upright image: a file is not bad
    because of its metadata.
    """
    order = BYTE_ORDERS.get(bytes(block[:4]))
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + ENTRY_BYTES * count, ENTRY_BYTES):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == TAG and kind in (SHORT, LONG):
                form = f"{order}H" if kind == SHORT else f"{order}I"
                (orientation,) = struct.unpack_from(form, block, entry + 8)
                return orientation if orientation in range(1, len(_TURNS)) else UPRIGHT
    except struct.error:
        pass
    return UPRIGHT


def turns(orientations: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the turn of each orientation (1 to 8): int32 [n]."""
    return _TURNS[orientations]


def transposes(orientation: int) -> bool:
    """Returns whether an image of this orientation exchanges height and width to be upright."""
    return orientation >= _FIRST_TRANSPOSED


def turn_upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Returns a view of an image's pixels ([height, width, ...]) that is upright."""
    turn = _TURNS[orientation]
    if turn & TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if turn & UPSIDE_DOWN:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if turn & MIRRORED else pixels


def upright_sizes(
    heights: npt.NDArray[Any], widths: npt.NDArray[Any], orientations: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns heights and widths, pixels, of n stored images when they are upright; each [n]."""
    transposed = orientations >= _FIRST_TRANSPOSED
    return np.where(transposed, widths, heights), np.where(transposed, heights, widths)


def stored_windows(
    windows: npt.NDArray[Any],
    heights: npt.NDArray[Any],
    widths: npt.NDArray[Any],
    turned: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Finds windows of upright images in the stored ones.

    Args:
      windows: top, left, height and width of each in the upright image: int32 [n, 4].
      heights, widths: the sizes of the upright images: int64 [n], pixels.
      turned: the turn of each image: int32 [n].

    Returns:
      Top, left, height and width of each in the stored image: int32 [n, 4].
    """
    if not turned.any():
        return windows
    top, left, height, width = windows.T
    left = np.where(turned & MIRRORED, widths - left - width, left)
    top = np.where(turned & UPSIDE_DOWN, heights - top - height, top)
    undone = np.stack([top, left, height, width], axis=1)
    is_transposed = (turned & TRANSPOSED).astype(bool)[:, None]
    return np.where(is_transposed, undone[:, [1, 0, 3, 2]], undone).astype(np.int32)
