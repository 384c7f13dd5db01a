"""The operations from encoded images to uint8 pixels of the network's size, all on the CPU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf

from trainer.config import DataConfig
from trainer.inputs.images import encoded, rand_augment
from trainer.inputs.images.augmentation import SHIFT_FRACTION

# Columns of Rows.randoms.
_FLIP = 0
_SHIFT = slice(1, 3)
_JITTER = slice(3, 6)
_RAND_AUGMENT = slice(6, 6 + 2 * rand_augment.LAYERS)
NUM_RANDOMS = _RAND_AUGMENT.stop


class Rows(NamedTuple):
    """A chunk of n examples before decoding, or, with shapes without n, one of them.

    Attributes:
      contents: the encoded images; where the decoder is RAW, the window's pixels: string [n].
      decoders: the place of each image's format in `encoded.FORMATS`, or RAW: int32 [n].
      windows: top, left, height and width of the part to decode: int32 [n, 4].
      randoms: the random numbers that augmentation uses: float32 [n, NUM_RANDOMS] in [0, 1).
      labels: the classes: int32 [n].
      weights: the weight of each row: 1 for an example, 0 for a row that does not count, -1 where
        the stream has to end; float32 [n].
      shares: the shares of `pipeline.Batch`: float32 [n].
      boxes: the boxes of `pipeline.Batch`: int32 [n, 4].
    """

    contents: npt.NDArray[Any] | tf.Tensor
    decoders: npt.NDArray[Any] | tf.Tensor
    windows: npt.NDArray[Any] | tf.Tensor
    randoms: npt.NDArray[Any] | tf.Tensor
    labels: npt.NDArray[Any] | tf.Tensor
    weights: npt.NDArray[Any] | tf.Tensor
    shares: npt.NDArray[Any] | tf.Tensor
    boxes: npt.NDArray[Any] | tf.Tensor


ROW_TYPES = Rows(
    contents=tf.string,
    decoders=tf.int32,
    windows=tf.int32,
    randoms=tf.float32,
    labels=tf.int32,
    weights=tf.float32,
    shares=tf.float32,
    boxes=tf.int32,
)
ROW_SHAPES = Rows(
    contents=(),
    decoders=(),
    windows=(4,),
    randoms=(NUM_RANDOMS,),
    labels=(),
    weights=(),
    shares=(),
    boxes=(4,),
)


def decode_window(contents: tf.Tensor, decoder: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Adds the decoder of a part of an image.

    Args:
      contents: the encoded image, or, for RAW, the window's pixels: string, scalar.
      decoder: the place of the image's format in `encoded.FORMATS`, or RAW: int32, scalar.
      window: top, left, height and width of the part: int32 [4].

    Returns:
      uint8 [height, width, 3].
    """
    _, _, height, width = tf.unstack(window)

    def view_raw() -> tf.Tensor:
        return tf.reshape(tf.io.decode_raw(contents, tf.uint8), [height, width, 3])

    # Nested conditions, since nearly all images are JPEGs, for which a switch takes 3 % longer.
    build: Callable[[], tf.Tensor] = view_raw
    for number, image_format in reversed(list(enumerate(encoded.FORMATS))):
        decode = functools.partial(image_format.decode, contents, window)
        build = functools.partial(tf.cond, tf.equal(decoder, number), decode, build)
    return build()


def _shift(pixels: tf.Tensor, randoms: tf.Tensor) -> tf.Tensor:
    """Shifts an image by up to SHIFT_FRACTION of its size each way, and fills up with black."""
    size = pixels.shape[0]
    padding = round(size * SHIFT_FRACTION)
    padded = tf.pad(pixels, [[padding, padding], [padding, padding], [0, 0]])
    offset = tf.cast(randoms * (2 * padding + 1), tf.int32)
    return tf.slice(padded, [offset[0], offset[1], 0], [size, size, 3])


def _jitter(pixels: tf.Tensor, randoms: tf.Tensor, strength: float) -> tf.Tensor:
    """Changes brightness, contrast and colour by factors in 1 +- strength."""
    factors = 1 + strength * (2 * randoms - 1)
    pixels = rand_augment.brightness(pixels, factors[0])
    pixels = rand_augment.contrast(pixels, factors[1])
    return rand_augment.color(pixels, factors[2])


def build_pixels(row: Rows, config: DataConfig, *, training: bool) -> tf.Tensor:
    """Adds the operations from one example's row to its pixels.

    Args:
      row: the tensors of the row.
      config: the size and the augmentation.
      training: whether to augment.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = config.image_size
    window = decode_window(row.contents, row.decoders, row.windows)
    pixels = tf.image.resize(window, [size, size])  # Bilinear: values stay within [0, 255].
    pixels = tf.ensure_shape(tf.cast(pixels + 0.5, tf.uint8), [size, size, 3])
    if not training:
        return pixels
    randoms = row.randoms
    if config.augment == "shift":
        pixels = _shift(pixels, randoms[_SHIFT])
    if config.augment in ("standard", "rand") and config.flip:
        mirrored = randoms[_FLIP] < 0.5
        pixels = tf.cond(mirrored, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    if config.augment == "rand":
        pixels = rand_augment.apply(pixels, randoms[_RAND_AUGMENT])
    if config.color_jitter > 0:
        pixels = _jitter(pixels, randoms[_JITTER], config.color_jitter)
    return tf.ensure_shape(pixels, [size, size, 3])
