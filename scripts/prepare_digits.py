#!/usr/bin/env python3
"""Writes scikit-learn's 1,797 handwritten digits as PNG files and as TFRecord shards.

The images are real: 8 x 8 pixels in 16 shades of grey, from 43 people (UCI's "Optical Recognition
of Handwritten Digits"). 1,437 are to train on and 360 to validate on, each digit in proportion.
"""

import argparse
import os

from shared import program

from trainer.errors import UserError
from trainer.inputs.conversion import convert
from trainer.inputs.sources import manifest
from trainer.process import files

_VALIDATION_FRACTION = 0.2
_DEFAULT_OUT = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "digits"
)


def write_images(folder: str) -> None:
    """Writes `folder`/<digit>/<number>.png, all or nothing."""
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"{error}. Install it: pip install scikit-learn pillow") from error
    digits = load_digits()
    files.sweep_beside(folder)
    with files.replacing(folder) as temporary:
        for label in range(10):
            (temporary / str(label)).mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            shades = (pixels * 255 / 16).round().astype("uint8")
            Image.fromarray(shades).save(temporary / str(label) / f"{number:04}.png")


def prepare(out: str) -> manifest.Manifest:
    """Writes what a folder lacks of the images, the shards and their manifest."""
    images = os.path.join(out, "images")
    files.check_writable(out, "out", is_folder=True)
    with open(os.path.join(out, ".images.lock"), "a") as lock:
        files.lock(lock, lock.name, wait=True)  # Another first run may be preparing them, too.
        if not os.path.isdir(images):
            write_images(images)
        return convert.convert(images, out, validation_fraction=_VALIDATION_FRACTION)


def main() -> None:
    """Prepares the folder that the command line names, and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=program.path,
        default=_DEFAULT_OUT,
        help="folder to write to; %(default)s",
    )
    out = str(parser.parse_args().out)
    train, validation = (
        sum(shard.examples for shard in prepare(out).splits[split])
        for split in ("train", "validation")
    )
    path = os.path.join(out, manifest.FILE_NAME)
    print(f"{path}: {train} digits to train on, {validation} to validate on")


if __name__ == "__main__":
    program.run(main)
