"""A look at the sizes of some training images, before steps wait for their decoding."""

import shlex
import statistics

import numpy as np

from trainer.config import DataConfig
from trainer.errors import UserError
from trainer.inputs.images.encoded import read_header
from trainer.inputs.source import BadImageError, Split

_SAMPLES = 16
# A photograph of 500 x 375 has 4 times the pixels of a network's input of 224, one of 12 million
# pixels 240 times: from here on decoding takes several times as long as for the former.
_MANY = 40
# Of the images that make_tfrecords.py should make, to the network's size: 512 for 224.
_ROOM = 16 / 7


def describe_large(split: Split, config: DataConfig, *, is_folder: bool) -> tuple[str, ...]:
    """Returns a line about images that are much larger than the network's input; () if they aren't.

    Args:
      split: the training examples, of which some are read.
      config: the size of the network's input.
      is_folder: whether they are in a folder of images; else the folder that shards were made of
        has to be found.
    """
    count = len(split.labels)
    sizes = []
    for example in np.linspace(0, count - 1, min(count, _SAMPLES)).astype(int).tolist():
        try:
            header = read_header(split.read(example))
        except (BadImageError, UserError):  # It is told when the stream reads it.
            continue
        sizes.append((header.height * header.width, header.width, header.height))
    if not sizes:
        return ()
    pixels, width, height = statistics.median_low(sizes)
    times = pixels / config.image_size**2
    if times < _MANY:
        return ()
    where = "" if is_folder else ", where FOLDER has them as files in train/<class> and so on"
    return (
        f"the median image has {width} x {height} pixels, {times:.0f} times the network's input, "
        f"and steps may wait for the decoder: {_conversion(config, is_folder=is_folder)} makes "
        f"images that are read quickly{where}",
    )


def _conversion(config: DataConfig, *, is_folder: bool) -> str:
    """Returns the command that makes smaller images of the same splits."""
    words = [
        "scripts/make_tfrecords.py",
        f"--images={config.data_dir if is_folder else 'FOLDER'}",
        "--out=DIR",
        f"--shorter_side={round(config.image_size * _ROOM)}",
    ]
    if config.validation_fraction:
        words.append(f"--validation_fraction={config.validation_fraction}")
    if config.follow_links:
        words.append("--follow_links")
    return shlex.join(words)
