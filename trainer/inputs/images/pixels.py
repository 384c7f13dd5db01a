"""The operations from encoded images to uint8 pixels of the network's size, all on the CPU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config import DataConfig
from trainer.inputs.images import (
    encoded,
    graph_decoders,
    orientation,
    rand_augment,
    random_erasing,
)
from trainer.inputs.images.augmentation import SHIFT_FRACTION
from trainer.inputs.images.reduction import Filter

# Columns of Rows.randoms. The first is used for the turns.
FLIP = 0
_SHIFT = slice(1, 3)
_JITTER = slice(3, 6)
_RAND_AUGMENT = slice(6, 6 + 2 * rand_augment.LAYERS)
NUM_RANDOMS = _RAND_AUGMENT.stop
_ERASING = slice(NUM_RANDOMS, NUM_RANDOMS + random_erasing.RANDOMS)  # With --random_erasing alone.


class Rows(NamedTuple):
    """A chunk of n examples before decoding, or, with shapes without n, one of them.

    Attributes:
      contents: the encoded images; where the decoder is RAW, the window's pixels; where it is
        AGAIN, the number of the example in digits: string [n].
      decoders: the number of each image's decoder (`graph_decoders`), or RAW, BY_PILLOW or AGAIN of
        `encoded`: int32 [n].
      windows: top, left, height and width of the part to decode, pixels of the stored image, or of
        the reduced one: int32 [n, 4].
      crops: top, left, height and width within that part of what becomes the network's input: all
        of it, but for what a reduced image has too much at the borders: float32 [n, 4].
      filters: the filter by which it gets the size of the network's input: `reduction.Filter`;
        int32 [n].
      turns: the turn of each input after that; see `orientation`: int32 [n].
      randoms: the random numbers that augmentation uses: float32 [n, count_randoms] in [0, 1).
      labels: the classes: int32 [n].
      weights: the weight of each row: 1 for an example, 0 for a row that does not count, -1 where
        the stream has to end; float32 [n].
      shares: the shares of `pipeline.Batch`: float32 [n].
      boxes: the boxes of `pipeline.Batch`: int32 [n, 4].
    """

    contents: npt.NDArray[Any] | tf.Tensor
    decoders: npt.NDArray[Any] | tf.Tensor
    windows: npt.NDArray[Any] | tf.Tensor
    crops: npt.NDArray[Any] | tf.Tensor
    filters: npt.NDArray[Any] | tf.Tensor
    turns: npt.NDArray[Any] | tf.Tensor
    randoms: npt.NDArray[Any] | tf.Tensor
    labels: npt.NDArray[Any] | tf.Tensor
    weights: npt.NDArray[Any] | tf.Tensor
    shares: npt.NDArray[Any] | tf.Tensor
    boxes: npt.NDArray[Any] | tf.Tensor


ROW_TYPES = Rows(
    contents=tf.string,
    decoders=tf.int32,
    windows=tf.int32,
    crops=tf.float32,
    filters=tf.int32,
    turns=tf.int32,
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
    crops=(4,),
    filters=(),
    turns=(),
    randoms=(NUM_RANDOMS,),
    labels=(),
    weights=(),
    shares=(),
    boxes=(4,),
)


def count_randoms(config: DataConfig) -> int:
    """Returns how many random numbers a row has."""
    return _ERASING.stop if config.random_erasing > 0 else NUM_RANDOMS


def row_shapes(config: DataConfig) -> Rows:
    """Returns the shape of each part of a row: `ROW_SHAPES`, with as many random numbers."""
    return ROW_SHAPES._replace(randoms=(count_randoms(config),))


# From contents, decoder and window of a row to uint8 [height, width, 3]; to another shape
# where no such window can be decoded.
DecodeFn = Callable[[bytes, int, npt.NDArray[Any]], npt.NDArray[Any]]


def decode_window(
    contents: tf.Tensor,
    decoder: tf.Tensor,
    window: tf.Tensor,
    resize: str,
    decode: DecodeFn | None = None,
) -> tf.Tensor:
    """Adds the decoder of a part of an image.

    Args:
      contents: the image; see `Rows`: string, scalar.
      decoder: the number of its decoder; see `Rows`: int32, scalar.
      window: top, left, height and width of the part of the image, or of the reduced image:
        int32 [4].
      resize: --resize; see `graph_decoders.create_functions`.
      decode: the function that decodes where the decoder is BY_PILLOW or AGAIN. None: it never is.

    Returns:
      uint8 [height, width, 3].
    """
    _, _, height, width = tf.unstack(window)

    def view_raw() -> tf.Tensor:
        return tf.reshape(tf.io.decode_raw(contents, tf.uint8), [height, width, 3])

    def call_python() -> tf.Tensor:
        pixels = tf.numpy_function(decode, [contents, decoder, window], tf.uint8)
        return tf.ensure_shape(tf.reshape(pixels, [height, width, 3]), [None, None, 3])

    def view_or_call() -> tf.Tensor:
        return tf.cond(tf.equal(decoder, encoded.RAW), view_raw, call_python)

    decode_first, *others = [
        functools.partial(decode, contents, window)
        for decode in graph_decoders.create_functions(resize)
    ]
    # Nearly all images are JPEGs, for which a switch alone takes 3 % longer.
    return tf.cond(
        tf.equal(decoder, 0),
        decode_first,
        lambda: tf.switch_case(
            decoder - 1, others, default=view_raw if decode is None else view_or_call
        ),
    )


def _resize(window: tf.Tensor, row: Rows, config: DataConfig) -> tf.Tensor:
    """Resizes a decoded part of an image to the network's size.

    Args:
      window: the part: uint8 [height, width, 3].
      row: its crop and its filter.
      config: --image_size and --resize.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = config.image_size

    def interpolate() -> tf.Tensor:
        return tf.image.resize(window, [size, size])

    def average() -> tf.Tensor:
        return tf.image.resize(window, [size, size], method="area")

    def weigh() -> tf.Tensor:
        scale = size / row.crops[2:]
        resized = tf.raw_ops.ScaleAndTranslate(
            images=window[None],
            size=[size, size],
            scale=scale,
            translation=-row.crops[:2] * scale,
            kernel_type="triangle",
            antialias=True,
        )
        return tf.squeeze(resized, 0)

    if config.resize == "bilinear":
        pixels = interpolate()
    else:
        builders = {
            Filter.BILINEAR: interpolate,
            Filter.AREA: average,
            Filter.TRIANGLE: weigh,
        }
        pixels = tf.switch_case(row.filters, {int(kind): build for kind, build in builders.items()})
    # Values of all stay within [0, 255].
    return tf.ensure_shape(tf.cast(pixels + 0.5, tf.uint8), [size, size, 3])


def _turn(pixels: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turns an image; see `orientation`."""
    # Looked up, since the small operations of working it out take as long as the turn itself.
    turns = np.arange(orientation.TURNS)
    bits = (orientation.UPSIDE_DOWN, orientation.MIRRORED)
    dims = np.stack([*((turns & bit) != 0 for bit in bits), turns < 0], axis=1)
    orders = np.where(turns[:, None] & orientation.TRANSPOSED, [1, 0, 2], [0, 1, 2])

    def build() -> tf.Tensor:
        # One operation for all cases, since each function of a condition takes time at the start.
        turned = tf.transpose(pixels, tf.gather(orders.astype(np.int32), turn))
        return tf.raw_ops.Reverse(tensor=turned, dims=tf.gather(dims, turn))

    return tf.cond(tf.equal(turn, 0), lambda: pixels, build)


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


def build_pixels(
    row: Rows, config: DataConfig, *, training: bool, decode: DecodeFn | None = None
) -> tf.Tensor:
    """Adds the operations from one example's row to its pixels.

    Args:
      row: the tensors of the row.
      config: the size and the augmentation.
      training: whether to augment.
      decode: see `decode_window`.

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = config.image_size
    window = decode_window(row.contents, row.decoders, row.windows, config.resize, decode)
    pixels = _resize(window, row, config)
    pixels = tf.ensure_shape(_turn(pixels, row.turns), [size, size, 3])
    if not training:
        return pixels
    randoms = row.randoms
    if config.augment == "shift":
        pixels = _shift(pixels, randoms[_SHIFT])
    if config.augment == "rand":
        pixels = rand_augment.apply(pixels, randoms[_RAND_AUGMENT])
    if config.color_jitter > 0:
        pixels = _jitter(pixels, randoms[_JITTER], config.color_jitter)
    if config.random_erasing > 0:
        pixels = random_erasing.apply(pixels, randoms[_ERASING], config.random_erasing)
    return tf.ensure_shape(pixels, [size, size, 3])
