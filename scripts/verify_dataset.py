#!/usr/bin/env python3
"""Reads a whole data set and names every fault in it, with file and offset.

  scripts/verify_dataset.py --data_dir=DIR

DIR has TFRecord shards of any origin, or a folder of images per class. Checksums, labels and
counts are compared, and every image is decoded, as training decodes it. Exit status 1: faults.
"""

import argparse
import collections
import os

from shared import program

from trainer.errors import UserError
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.sources import storage
from trainer.process import host_cores


def main() -> int:
    """Prints a line per fault and one per split; returns 1 where there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir", type=os.path.expanduser, required=True, help="folder of the data set"
    )
    parser.add_argument(
        "--decode_every",
        type=program.at_least(1),
        default=1,
        help="decode one image in so many; default: all",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="find JPEGs that were cut off and closed, too, whose rest decodes to grey: twice the "
        "time",
    )
    parser.add_argument(
        "--follow_links", action="store_true", help="read what links out of the folder lead to"
    )
    arguments = parser.parse_args()
    if not storage.is_folder(arguments.data_dir):
        raise UserError(f"--data_dir: must be a folder that exists, got {arguments.data_dir!r}")
    verifier = Verifier(
        arguments.data_dir,
        decode_every=arguments.decode_every,
        thorough=arguments.thorough,
        follow_links=arguments.follow_links,
    )
    for remark in verifier.remarks:
        print(remark)
    examples: collections.Counter[str] = collections.Counter()
    turned: collections.Counter[str] = collections.Counter()
    faults = 0
    for verdict in verifier.run(threads=host_cores.available_cores()):
        examples[verdict.split] += verdict.examples
        turned[verdict.split] += verdict.turned
        faults += len(verdict.faults)
        for fault in verdict.faults:
            print(fault)
    for split, count in examples.items():
        print(f"{split}: {count} examples")
        if turned[split]:
            print(
                f"{split}: {turned[split]} are stored turned or mirrored, by their EXIF "
                "orientation (--exif_orientation)"
            )
    print(f"{faults} faults" if faults else "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    program.run(main)
