"""Random erasing (arXiv:1708.04896) of one uint8 image, as operations of a graph.

A rectangle becomes noise: each value is drawn by itself from all that there are, which the paper
found about as good as their mean, and better than black or white.
"""

import math

import tensorflow as tf

RANDOMS = 7
# The share of the image's area: as in timm and torchvision; the paper's may be up to 0.4.
_LEAST_SHARE = 0.02
_MOST_SHARE = 1 / 3
# Height over width, or the reverse, is at most the paper's 1 / 0.3. Its logarithm is uniform, as in
# timm and torchvision, so that both are alike.
_MOST_ASPECT = 1 / 0.3


def apply(pixels: tf.Tensor, randoms: tf.Tensor, probability: float) -> tf.Tensor:
    """Fills a rectangle with noise, or leaves the image as it is.

    Args:
      pixels: the image: uint8 [size, size, 3].
      randoms: the random numbers to use: one each for whether, area and aspect, two for the place,
        and two for the seed of the noise; float32 [RANDOMS] in [0, 1], since those of float64 just
        below 1 are rounded.
      probability: the probability of a rectangle, above 0.

    Returns:
      uint8 [size, size, 3].
    """
    size = pixels.shape[0]

    def erase() -> tf.Tensor:
        share = _LEAST_SHARE + (_MOST_SHARE - _LEAST_SHARE) * randoms[1]
        # A longer side than the image's would have to be drawn again.
        bound = tf.minimum(math.log(_MOST_ASPECT), -tf.math.log(share))
        stretch = tf.exp((randoms[2] - 0.5) * bound)  # The root of the aspect.
        exact = size * tf.sqrt(share) * tf.stack([stretch, 1 / stretch])
        sides = tf.clip_by_value(tf.cast(tf.round(exact), tf.int32), 1, size)
        room = size - sides
        starts = tf.minimum(tf.cast(randoms[3:5] * tf.cast(room + 1, tf.float32), tf.int32), room)
        # Stateless, by a named algorithm: the same wherever and whenever the example is made.
        seed = tf.cast(randoms[5:] * 2.0**24, tf.int32)
        bits = tf.random.stateless_uniform(sides, seed, None, None, tf.int32, alg="philox")
        noise = tf.bitcast(bits, tf.uint8)[:, :, :3]
        # Copies of whole parts, which take less time than a choice for each pixel.
        (top, left), (bottom, right) = tf.unstack(starts), tf.unstack(starts + sides)
        beside = pixels[top:bottom]
        middle = tf.concat([beside[:, :left], noise, beside[:, right:]], axis=1)
        return tf.concat([pixels[:top], middle, pixels[bottom:]], axis=0)

    return tf.cond(randoms[0] < probability, erase, lambda: pixels)
