#!/usr/bin/env python3
"""How fast an exported network is beside its checkpoint's own graph, from pixels to logits.

  scripts/benchmark_export.py --exported=DIR --checkpoint=runs/one/model.ckpt-270

Both take turns in one process, with the same cores; what counts is the median of the rounds'
ratios, since a machine's speed drifts. What it tells of the CPU's time means something on a busy
machine, too. The checkpoint's graph is run by TensorFlow's own operations, without the compiled
kernels; the exported one as `tf.saved_model.load` gives it. TF_ENABLE_ONEDNN_OPTS=0 or 1 turns
oneDNN off or on for both.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from shared import program

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import model_file, restore
from trainer.config import Config
from trainer.cpu_kernels import switch
from trainer.errors import UserError
from trainer.graph.network import classify
from trainer.machine import session

Run = Callable[[Any], Any]


def load_checkpoint(config: Config, prefix: str, num_classes: int) -> Run:
    """Returns a function from pixels to logits, by the checkpoint's graph in a session."""
    size = config.data.image_size
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.uint8, [None, size, size, 3])
        logits = classify(config, images, num_classes=num_classes)
        own = tf1.Session(config=session.create_config())
        restore.restore_weights(own, prefix, restore.network_variables(), new_logits=False)
    return lambda pixels: own.run(logits, {images: pixels})


def load_exported(folder: str) -> Run:
    """Returns a function from pixels to logits, by the signature `images`."""
    loaded = tf.saved_model.load(folder)

    def run(pixels: Any) -> Any:
        return loaded.signatures["images"](images=tf.constant(pixels))["logits"].numpy()

    return run


class Turn(NamedTuple):
    """The images of a turn per second, and per second of the CPU in all threads."""

    images_per_sec: float
    images_per_cpu_sec: float


def take_turn(run: Run, pixels: Any, seconds: float) -> Turn:
    """Times runs that take some seconds in all, and at least one."""
    wall, cpu, runs = time.perf_counter(), time.process_time(), 0
    while not runs or time.perf_counter() - wall < seconds:
        run(pixels)
        runs += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(runs * len(pixels) / wall, runs * len(pixels) / cpu)


def compare(runs: dict[str, Run], pixels: Any, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Returns medians of each, and of the rounds' ratios of the second to the first."""
    turns: dict[str, list[Turn]] = {name: [] for name in runs}
    for run in runs.values():
        take_turn(run, pixels, seconds)
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            turns[name].append(take_turn(runs[name], pixels, seconds))
    found: dict[str, Any] = {}
    for field in Turn._fields:
        own, exported = ([getattr(turn, field) for turn in each] for each in turns.values())
        ratios = [one / other for one, other in zip(exported, own, strict=True)]
        medians = map(statistics.median, (own, exported, ratios))
        found[field] = dict(
            zip((*runs, "ratio"), (round(each, 3) for each in medians), strict=True)
        )
    return found


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--exported", type=program.path, required=True, help="--export_dir")
    parser.add_argument("--checkpoint", required=True, help="prefix of the exported checkpoint")
    parser.add_argument("--batch_sizes", default="1,32", help="%(default)s")
    parser.add_argument("--rounds", type=program.at_least(1), default=10, help="%(default)s")
    parser.add_argument(
        "--seconds", type=program.at_least(0, float), default=5.0, help="per turn; %(default)s"
    )
    options = parser.parse_args()
    os.environ[switch.VARIABLE] = "0"
    described = model_file.read(options.exported)
    if described is None:
        raise UserError(f"{options.exported} has no model.json: give what --mode=export has made")
    config = model_file.apply(Config(), described)
    num_classes = restore.count_classes(options.checkpoint)
    runs = {
        "checkpoint": load_checkpoint(config, options.checkpoint, num_classes),
        "exported": load_exported(str(options.exported)),
    }
    size = config.data.image_size
    found: dict[str, Any] = {"image_size": size}
    for batch_size in map(int, options.batch_sizes.split(",")):
        pixels = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
        found[f"batch {batch_size}"] = compare(
            runs, pixels, rounds=options.rounds, seconds=options.seconds
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    program.run(main)
