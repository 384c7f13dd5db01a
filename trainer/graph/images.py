"""Turns batches into the network's input, by operations of the graph, on its device."""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config import DataConfig
from trainer.inputs.pipeline import Batch

# Of ImageNet's training images scaled to [0, 1], in the order red, green, blue.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def normalize(images: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Scales pixels as --preprocessing asks.

    Args:
      images: uint8 [batch, height, width, 3].
      config: names the scaling.

    Returns:
      float32 [batch, height, width, 3]: in [-1, 1] (inception), or with mean 0 and standard
      deviation 1 of each channel over ImageNet.
    """
    pixels = tf.cast(images, tf.float32)
    if config.preprocessing == "inception":
        return pixels / 127.5 - 1.0
    return (pixels / 255.0 - _IMAGENET_MEAN) / _IMAGENET_DEVIATION


def to_pixels(images: npt.NDArray[Any], config: DataConfig) -> npt.NDArray[Any]:
    """Turns normalized images into pixels that people can look at: the inverse of `normalize`.

    Args:
      images: float32 [batch, height, width, 3].
      config: names the scaling.

    Returns:
      uint8 [batch, height, width, 3].
    """
    if config.preprocessing == "inception":
        pixels = (images + 1.0) * 127.5
    else:
        pixels = (images * _IMAGENET_DEVIATION + _IMAGENET_MEAN) * 255.0
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def network_input(batch: Batch, config: DataConfig) -> tf.Tensor:
    """Scales a training batch's images, and mixes them where --mixup or --cutmix ask for it.

    Examples are mixed in pairs from both ends of the batch: the first with the last, and so on.

    Returns:
      float32 [batch, height, width, 3]; see `normalize`.
    """
    images = normalize(batch.images, config)
    partners = tf.reverse(images, [0])
    if config.mixup:
        area = batch.boxes[:, 2] * batch.boxes[:, 3]
        share = tf.where(area > 0, 1.0, batch.shares)[:, None, None, None]
        images = share * images + (1 - share) * partners
    if config.cutmix:
        images = tf.where(_inside(batch.boxes, config.image_size), partners, images)
    return images


def _inside(boxes: tf.Tensor, size: int) -> tf.Tensor:
    """Returns which pixels lie in each box (int32 [batch, 4]): bool [batch, size, size, 1]."""
    top, left, height, width = (part[:, None] for part in tf.unstack(boxes, axis=1))
    places = tf.range(size)[None]
    rows = (places >= top) & (places < top + height)
    columns = (places >= left) & (places < left + width)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def targets(batch: Batch, num_classes: int) -> tf.Tensor:
    """Returns the share of every class in each example: float32 [batch, num_classes].

    These are one-hot labels, unless examples are mixed: then `batch.shares` belong to an example's
    own label, and the rest to its partner's.
    """
    labels = tf.one_hot(batch.labels, num_classes)
    shares = batch.shares[:, None]
    return shares * labels + (1 - shares) * tf.reverse(labels, [0])
