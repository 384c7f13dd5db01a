"""The network's input from encoded images by operations of the graph, without Python.

For an exported network, which gets encoded images from its clients. What `augmentation`,
`orientation` and `reduction` find for an evaluation is computed here in the graph, and `pixels`
does the rest, so that the network's input is the same.
"""

import numpy as np
import tensorflow as tf

from trainer.config import DataConfig
from trainer.inputs.images import encoded, graph_decoders, orientation, reduction
from trainer.inputs.images.graph_headers import GraphHeader, read_header
from trainer.inputs.images.pixels import Rows, build_pixels
from trainer.inputs.images.reduction import Filter, Parts

# Images of a batch that are decoded at once, as far as there are threads; one that is decoded whole
# takes up to 3 bytes for each of `by_pillow.MAX_PIXELS`.
_AT_ONCE = 8
# The turn of each orientation; of 0, which is none: no turn.
_TURNS = orientation.turns(np.arange(9))
_RATIOS = np.array(graph_decoders.RATIOS, np.int64)


def build_network_input(contents: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Adds the operations from encoded images, JPEG or PNG, to pixels as an evaluation has them.

    Args:
      contents: the encoded images, each of any size: string [batch].
      config: the size, the crop, the way of resizing, and whether images are turned upright.

    Returns:
      uint8 [batch, image_size, image_size, 3].
    """
    size = config.image_size
    turns_upright = config.exif_orientation != "ignore"

    @tf.autograph.experimental.do_not_convert  # It would leave its source in temporary files.
    def prepare(item: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        number, image = item
        header = read_header(image, number, turns_upright=turns_upright)
        parts = find_centres(GraphHeader(*(part[None] for part in header)), config)
        return build_pixels(_row(image, parts), config, training=False)

    return tf.map_fn(
        prepare,
        (tf.range(tf.size(contents)), contents),
        fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
        parallel_iterations=_AT_ONCE,
    )


def _row(image: tf.Tensor, parts: Parts) -> Rows:
    """Returns the row of the only image in `parts`; what training alone reads is 0."""
    decoder, window, crop, kind, turn = (part[0] for part in parts)
    none = tf.zeros([])
    return Rows(
        contents=image,
        decoders=decoder,
        windows=window,
        crops=crop,
        filters=kind,
        turns=turn,
        randoms=none,
        labels=none,
        weights=none,
        shares=none,
        boxes=none,
    )


def find_centres(headers: GraphHeader, config: DataConfig) -> Parts:
    """Adds the operations that find what to decode of n images for an evaluation.

    Args:
      headers: the headers: int64 [n].
      config: the size of the network's input, the crop and the way of resizing.

    Returns:
      What `reduction.find_parts` returns for the windows of `augmentation.centre_crops`, as
      tensors.
    """
    turns = tf.gather(_TURNS, headers.orientation)
    is_transposed = _has(turns, orientation.TRANSPOSED)
    sizes = tf.stack([headers.height, headers.width], axis=1)
    upright = tf.where(is_transposed[:, None], sizes[:, ::-1], sizes)
    shorter = tf.cast(tf.reduce_min(upright, axis=1), tf.float64)
    # rint: of two whole numbers that are as close the even one, as NumPy's.
    side = tf.maximum(tf.math.rint(shorter * config.crop_fraction), 1.0)
    side = tf.cast(side, tf.int64)
    offsets = (upright - side[:, None]) // 2
    is_turned = tf.stack(
        [_has(turns, orientation.UPSIDE_DOWN), _has(turns, orientation.MIRRORED)], axis=1
    )
    offsets = tf.where(is_turned, upright - offsets - side[:, None], offsets)
    offsets = tf.where(is_transposed[:, None], offsets[:, ::-1], offsets)
    sides = tf.stack([side, side], axis=1)
    crops = tf.concat([tf.zeros_like(sides), sides], axis=1)
    filters = tf.fill(tf.shape(side), np.int32(Filter.BILINEAR))
    ratios = tf.zeros_like(turns)  # Places in RATIOS.
    windows = tf.concat([offsets, sides], axis=1)
    if config.resize == "antialias":
        filters = _choose_filters(tf.cast(side, tf.float64) / config.image_size)
        ratios = _choose_ratios(side, headers.place, config.image_size)
        reduced, within = _reduce(offsets, sides, sizes, tf.gather(_RATIOS, ratios))
        windows = tf.where(ratios[:, None] > 0, reduced, windows)
        crops = tf.where(ratios[:, None] > 0, within, tf.cast(crops, tf.float64))
    numbers = [
        [graph_decoders.number_of(place, ratio) for ratio in graph_decoders.RATIOS]
        for place in range(len(encoded.FORMATS))
    ]
    places = tf.stack([tf.cast(headers.place, tf.int32), ratios], axis=1)
    return Parts(
        tf.gather_nd(np.array(numbers, np.int32), places),
        tf.cast(windows, tf.int32),
        tf.cast(crops, tf.float32),
        filters,
        turns,
    )


def _has(turns: tf.Tensor, bit: int) -> tf.Tensor:
    return tf.not_equal(tf.bitwise.bitwise_and(turns, bit), 0)


def _choose_filters(shrinks: tf.Tensor) -> tf.Tensor:
    """Returns the filter of each square window by how many of its pixels become one, across."""
    is_little = shrinks <= reduction.LITTLE
    is_area = (shrinks >= 1) & (shrinks < reduction.MUCH)
    others = tf.where(is_area, np.int32(Filter.AREA), np.int32(Filter.TRIANGLE))
    return tf.where(is_little, np.int32(Filter.BILINEAR), others)


def _choose_ratios(side: tf.Tensor, place: tf.Tensor, image_size: int) -> tf.Tensor:
    """Returns the place in RATIOS of the greatest at which a window is large enough: int32 [n]."""
    largest = tf.cast(side, tf.float64) / (reduction.GAP * image_size)
    allowed = largest[:, None] >= np.array(graph_decoders.RATIOS[1:], np.float64)
    ratios = tf.math.count_nonzero(allowed, axis=1, dtype=tf.int32)
    can_reduce = np.array([row.decode_reduced is not None for row in encoded.FORMATS])
    return tf.where(tf.gather(can_reduce, place), ratios, 0)


def _reduce(
    offsets: tf.Tensor, sides: tf.Tensor, sizes: tf.Tensor, ratios: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `reduction._reduce` does, of n windows: int64 [n, 4] and float64 [n, 4].

    Args:
      offsets, sides: top and left, height and width of each window: int64 [n, 2].
      sizes: the height and width of each image as it is stored: int64 [n, 2].
      ratios: by how much each image is reduced: int64 [n].
    """
    by = tf.cast(ratios, tf.float64)[:, None]
    start, end = (tf.cast(part, tf.float64) / by for part in (offsets, offsets + sides))
    last = tf.math.ceil(tf.cast(sizes, tf.float64) / by)
    first = tf.math.floor(start)
    shape = tf.minimum(tf.math.ceil(end), last) - first
    windows = tf.cast(tf.concat([first, shape], axis=1), tf.int64)
    return windows, tf.concat([start - first, end - start], axis=1)
