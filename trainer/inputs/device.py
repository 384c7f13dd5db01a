"""From a batch to the network's input: ops of the training graph, which run on its device."""

import tensorflow as tf

from trainer.config import DataConfig

# Of ImageNet's training images scaled to [0, 1], in the order red, green, blue.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def normalize(images: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Scales pixels as --preprocessing says.

    Args:
      images: uint8 [batch, height, width, 3].
      config: names the scaling.

    Returns:
      float32 [batch, height, width, 3]: in [-1, 1] (inception), or each channel with mean 0 and
      standard deviation 1 over ImageNet.
    """
    pixels = tf.cast(images, tf.float32)
    if config.preprocessing == "inception":
        return pixels / 127.5 - 1.0
    return (pixels / 255.0 - _IMAGENET_MEAN) / _IMAGENET_DEVIATION
