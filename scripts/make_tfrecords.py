#!/usr/bin/env python3
"""Turns a folder of images into TFRecord shards and a manifest, for --dataset=tfrecord.

  scripts/make_tfrecords.py --images=DIR --out=DIR

DIR has train/<class>/* and validation/<class>/*, or <class>/* and --validation_fraction.
JPEGs and PNGs go in as they are, but upright: those that cameras store turned are encoded anew.
Other formats are turned into PNG. With --shorter_side=512, larger images become as large as
training needs, and are quick to read. Stopped and started again, it goes on where it was; the same
images and options give the same shards, bit for bit.
"""

import argparse
import os

from shared import program

from trainer.errors import UserError
from trainer.inputs.conversion import convert
from trainer.inputs.conversion.rewrite import DEFAULT_QUALITY, Rewriting
from trainer.inputs.sources import manifest
from trainer.process import host_cores


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=program.path, required=True, help="folder of images")
    parser.add_argument("--out", type=program.path, required=True, help="folder for the shards")
    parser.add_argument(
        "--validation_fraction", type=float, default=0.0, help="share of every class to hold out"
    )
    parser.add_argument(
        "--shard_mb",
        type=program.at_least(1e-6, float),
        default=128,
        help="size of a shard, MiB of the files that it is made of",
    )
    parser.add_argument(
        "--shorter_side",
        type=program.at_least(1),
        help="make larger images smaller, to this many pixels, in sRGB, as JPEG; "
        "512 suits training at 224; default: sizes stay",
    )
    parser.add_argument(
        "--quality",
        type=program.at_least(1),
        help=f"of the JPEGs that --shorter_side makes, 1 to 100; default: {DEFAULT_QUALITY}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images")
    parser.add_argument(
        "--max_bad",
        type=program.at_least(0),
        default=0,
        help="unreadable files to leave out without failing",
    )
    parser.add_argument(
        "--processes",
        type=program.at_least(1),
        default=host_cores.available_cores(),
        help="how many work at the same time; default: one per core",
    )
    parser.add_argument(
        "--follow_links", action="store_true", help="read what links out of the folder lead to"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.validation_fraction <= 1:
        parser.error("--validation_fraction: must be at least 0 and at most 1")
    if arguments.quality is not None and arguments.quality > 100:
        parser.error(f"--quality: must be at most 100, got '{arguments.quality}'")
    if arguments.quality is not None and arguments.shorter_side is None:
        parser.error("--quality: must be given with --shorter_side, which makes JPEGs, got none")
    return arguments


def main() -> None:
    """Converts the folder that the command line names, and prints what the data set holds."""
    arguments = _parse_arguments()
    if not arguments.images.is_dir():
        raise UserError(f"--images: must be a folder that exists, got '{arguments.images}'")
    if arguments.out.resolve().is_relative_to(arguments.images.resolve()):
        raise UserError(
            f"--out: must not be within --images, of which it would be a class, got "
            f"'{arguments.out}'"
        )
    described = convert.convert(
        str(arguments.images),
        str(arguments.out),
        validation_fraction=arguments.validation_fraction,
        shard_bytes=int(arguments.shard_mb * 2**20),
        seed=arguments.seed,
        max_bad=arguments.max_bad,
        processes=arguments.processes,
        follow_links=arguments.follow_links,
        rewriting=Rewriting(arguments.shorter_side, arguments.quality or DEFAULT_QUALITY),
    )
    for split, shards in described.splits.items():
        examples = sum(shard.examples for shard in shards)
        print(
            f"{split}: {examples} images of {len(described.classes)} classes, {len(shards)} shards"
        )
    print(f"{os.path.join(arguments.out, manifest.FILE_NAME)}: --data_dir={arguments.out}")


if __name__ == "__main__":
    program.run(main)
