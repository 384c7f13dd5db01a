"""RandAugment (arXiv:1909.13719) of one uint8 image, as operations of a graph.

Two of fourteen transformations, drawn with replacement, each at magnitude 9 of 30: the paper's
choice for ResNet-50 on ImageNet. Colour operations equal those of the same names in Pillow.
"""

from collections.abc import Callable

import tensorflow as tf

LAYERS = 2
_MAGNITUDE = 9 / 30

# The factors are the values at full magnitude in the paper's code.
_DEGREES = 30.0 * _MAGNITUDE
_SHEAR = 0.3 * _MAGNITUDE
_SHIFT = 150 / 331 * _MAGNITUDE  # A share of the image's size.
_CHANGE = 0.9 * _MAGNITUDE  # The change of an enhancement's factor.
_POSTERIZE_BITS = 8 - round(4 * _MAGNITUDE)
_SOLARIZE_FROM = round(256 * (1 - _MAGNITUDE))
_FILL = 128  # The grey outside of the image.


def _blend(first: tf.Tensor, second: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Interpolates from `first` (factor 0) to `second` (factor 1), and extrapolates beyond."""
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    return tf.cast(tf.clip_by_value(first + factor * (second - first), 0, 255), tf.uint8)


def _grey(pixels: tf.Tensor) -> tf.Tensor:
    """Returns the luminance (ITU-R 601) in whole numbers: float32 [height, width, 1]."""
    weighted = tf.cast(pixels, tf.float32) * (0.299, 0.587, 0.114)
    return tf.floor(tf.reduce_sum(weighted, axis=-1, keepdims=True) + 0.5)


def brightness(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the brightness: factor 0 gives black, 1 the image itself."""
    return _blend(tf.zeros_like(pixels), pixels, factor)


def contrast(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the contrast: factor 0 gives the mean grey everywhere, 1 the image itself."""
    mean = tf.floor(tf.reduce_mean(_grey(pixels)) + 0.5)
    return _blend(tf.fill(tf.shape(pixels), mean), pixels, factor)


def color(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the colour: factor 0 gives greys, 1 the image itself."""
    return _blend(_grey(pixels), pixels, factor)


def sharpness(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the sharpness: factor 0 gives the smoothed image, 1 the image itself.

    The outermost pixels stay as they are.
    """
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
    kernel = tf.tile(kernel[:, :, None, None], [1, 1, 3, 1])
    inner = tf.nn.depthwise_conv2d(
        tf.cast(pixels, tf.float32)[None], kernel, [1, 1, 1, 1], "VALID"
    )[0]
    is_inner = tf.pad(tf.ones_like(inner, tf.bool), [[1, 1], [1, 1], [0, 0]])
    smooth = tf.floor(tf.pad(inner, [[1, 1], [1, 1], [0, 0]]) + 0.5)
    return _blend(tf.where(is_inner, smooth, tf.cast(pixels, tf.float32)), pixels, factor)


def autocontrast(pixels: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255; a channel of a single value stays as it is."""
    low = tf.cast(tf.reduce_min(pixels, [0, 1]), tf.float32)
    high = tf.cast(tf.reduce_max(pixels, [0, 1]), tf.float32)
    scale = 255 / tf.maximum(high - low, 1)
    stretched = (tf.cast(pixels, tf.float32) - low) * scale
    # A value that rounding in float32 left just below a whole number is that number.
    stretched = tf.cast(tf.clip_by_value(stretched + 1e-4, 0, 255), tf.uint8)
    return tf.where(high > low, stretched, pixels)


def _equalize_channel(channel: tf.Tensor) -> tf.Tensor:
    values = tf.cast(channel, tf.int32)
    histogram = tf.math.bincount(tf.reshape(values, [-1]), minlength=256, maxlength=256)
    last = tf.gather(histogram, tf.reduce_max(values))
    step = (tf.reduce_sum(histogram) - last) // 255
    sums = tf.cumsum(histogram, exclusive=True) + step // 2
    table = tf.cast(tf.clip_by_value(sums // tf.maximum(step, 1), 0, 255), tf.uint8)
    return tf.cond(step > 0, lambda: tf.gather(table, values), lambda: channel)


def equalize(pixels: tf.Tensor) -> tf.Tensor:
    """Gives each channel a flat histogram."""
    return tf.stack([_equalize_channel(pixels[:, :, i]) for i in range(3)], axis=-1)


def posterize(pixels: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest `bits` bits of each value."""
    return tf.bitwise.bitwise_and(pixels, tf.constant(256 - (1 << 8 - bits), tf.uint8))


def solarize(pixels: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values from `threshold` on."""
    return tf.where(tf.cast(pixels, tf.int32) < threshold, pixels, 255 - pixels)


def _transform(pixels: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Applies an affine transformation about the image's centre.

    Args:
      pixels: the image: uint8 [height, width, 3].
      matrix: the map from (x, y, 1) in the result to (x, y) in the image, pixels: float32 [2, 3].
    """
    size = tf.shape(pixels)[:2]
    centre = (tf.cast(size[::-1], tf.float32) - 1) / 2
    offset = matrix[:, 2] + centre - tf.linalg.matvec(matrix[:, :2], centre)
    rows = tf.concat([matrix[:, :2], offset[:, None]], axis=1)
    result = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[None],
        transforms=tf.concat([tf.reshape(rows, [6]), [0.0, 0.0]], axis=0)[None],
        output_shape=size,
        fill_value=float(_FILL),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(result[0], pixels.shape)


def _matrix(entries: list[list[tf.Tensor | float]]) -> tf.Tensor:
    return tf.stack([tf.stack([tf.cast(entry, tf.float32) for entry in row]) for row in entries])


def rotate(pixels: tf.Tensor, degrees: tf.Tensor | float) -> tf.Tensor:
    """Rotates the image about its centre."""
    angle = tf.cast(degrees, tf.float32) * (3.141592653589793 / 180)
    sine, cosine = tf.sin(angle), tf.cos(angle)
    return _transform(pixels, _matrix([[cosine, -sine, 0.0], [sine, cosine, 0.0]]))


def shear(pixels: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    """Moves rows by x times their distance from the middle, and columns by y times theirs."""
    return _transform(pixels, _matrix([[1.0, x, 0.0], [y, 1.0, 0.0]]))


def translate(pixels: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    """Moves the image to the left and up by x and y of its size."""
    height, width = (tf.cast(size, tf.float32) for size in tf.unstack(tf.shape(pixels)[:2]))
    return _transform(pixels, _matrix([[1.0, 0.0, x * width], [0.0, 1.0, y * height]]))


def apply(pixels: tf.Tensor, randoms: tf.Tensor) -> tf.Tensor:
    """Applies LAYERS random transformations, one after the other.

    Args:
      pixels: the image: uint8 [height, width, 3].
      randoms: the random numbers to use: for each layer one for the transformation and one for its
        direction; float32 [2 * LAYERS] in [0, 1).

    Returns:
      uint8 [height, width, 3].
    """
    transform = tf.function(_apply_one, autograph=False)  # Traced once, for all layers.
    for layer in range(LAYERS):
        choice, direction = randoms[2 * layer], randoms[2 * layer + 1]
        pixels = transform(pixels, choice, tf.where(direction < 0.5, 1.0, -1.0))
    return pixels


def _apply_one(pixels: tf.Tensor, choice: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Applies the transformation that `choice`, in [0, 1), selects, in the direction of `sign`."""
    branches: list[Callable[[], tf.Tensor]] = [
        lambda: pixels,
        lambda: autocontrast(pixels),
        lambda: equalize(pixels),
        lambda: rotate(pixels, sign * _DEGREES),
        lambda: solarize(pixels, _SOLARIZE_FROM),
        lambda: color(pixels, 1 + sign * _CHANGE),
        lambda: posterize(pixels, _POSTERIZE_BITS),
        lambda: contrast(pixels, 1 + sign * _CHANGE),
        lambda: brightness(pixels, 1 + sign * _CHANGE),
        lambda: sharpness(pixels, 1 + sign * _CHANGE),
        lambda: shear(pixels, sign * _SHEAR, 0.0),
        lambda: shear(pixels, 0.0, sign * _SHEAR),
        lambda: translate(pixels, sign * _SHIFT, 0.0),
        lambda: translate(pixels, 0.0, sign * _SHIFT),
    ]
    return tf.switch_case(tf.cast(choice * len(branches), tf.int32), branches)
