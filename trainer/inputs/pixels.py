"""Graph ops from encoded images to uint8 pixels of the network's size. They run on the CPU."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.config import DataConfig
from trainer.inputs.augmentation import SHIFT_FRACTION


class Rows(NamedTuple):
    """A chunk of n examples on its way to the pixels (without n: one of them).

    Attributes:
      contents: string [n]: encoded images; for the RAW decoder the window's pixels themselves.
      decoders: int32 [n]: JPEG, PNG or RAW.
      windows: int32 [n, 4]: top, left, height and width of the part to take.
      labels: int32 [n].
      weights: float32 [n]: 1; 0 for a row that does not count; -1 where the stream has to end.
      flips: bool [n]: whether to mirror.
      shifts: float32 [n, 2]: where to move rows and columns, in [0, 1); 0.5 is nowhere.
    """

    contents: np.ndarray | tf.Tensor
    decoders: np.ndarray | tf.Tensor
    windows: np.ndarray | tf.Tensor
    labels: np.ndarray | tf.Tensor
    weights: np.ndarray | tf.Tensor
    flips: np.ndarray | tf.Tensor
    shifts: np.ndarray | tf.Tensor


ROW_TYPES = Rows(
    tf.string, tf.int32, tf.int32, tf.int32, tf.float32, tf.bool, tf.float32
)
ROW_SHAPES = Rows((), (), (4,), (), (), (), (2,))


def decode_window(
    contents: tf.Tensor, decoder: tf.Tensor, window: tf.Tensor
) -> tf.Tensor:
    """Decodes a part of an image; of a JPEG, little more than that part.

    Args:
      contents: string, scalar.
      decoder: int32, scalar: JPEG, PNG or RAW.
      window: int32 [4]: top, left, height, width.

    Returns:
      uint8 [height, width, 3].
    """
    top, left, height, width = tf.unstack(window)

    def decode_jpeg() -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(contents, window, channels=3)

    def decode_png() -> tf.Tensor:
        pixels = tf.io.decode_png(contents, channels=3)
        return tf.slice(pixels, [top, left, 0], [height, width, 3])

    def view_raw() -> tf.Tensor:
        return tf.reshape(tf.io.decode_raw(contents, tf.uint8), [height, width, 3])

    return tf.switch_case(decoder, [decode_jpeg, decode_png, view_raw])


def _shift(pixels: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Moves an image by up to SHIFT_FRACTION of its size each way; black comes in."""
    size = pixels.shape[0]
    padding = round(size * SHIFT_FRACTION)
    padded = tf.pad(pixels, [[padding, padding], [padding, padding], [0, 0]])
    offset = tf.cast(shift * (2 * padding + 1), tf.int32)
    return tf.slice(padded, [offset[0], offset[1], 0], [size, size, 3])


def build_pixels(row: Rows, config: DataConfig, *, training: bool) -> tf.Tensor:
    """One example's pixels.

    Args:
      row: its tensors.
      config: size and augmentation.
      training: whether to augment.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = config.image_size
    window = decode_window(row.contents, row.decoders, row.windows)
    pixels = tf.image.resize(window, [size, size])  # Bilinear: stays within [0, 255].
    pixels = tf.ensure_shape(tf.cast(pixels + 0.5, tf.uint8), [size, size, 3])
    if training and config.augment == "shift":
        pixels = _shift(pixels, row.shifts)
    if training and config.augment == "standard" and config.flip:
        pixels = tf.cond(row.flips, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return pixels
