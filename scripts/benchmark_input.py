#!/usr/bin/env python3
"""Measures the input pipeline against the least that any pipeline has to do.

JPEGs of 500 x 375 pixels and 50 KB, in TFRecord shards in the page cache, become random crops of
224 pixels, by --resize=antialias and bilinear. `bare` is decode_and_crop_jpeg, bilinear resize and
flip of the same crops from memory. All take turns; images per second of each, on one core and on
all that the process may use, are printed.
"""

import argparse
import dataclasses
import functools
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from shared import loaded_tensorflow, program  # noqa: F401

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs import dataset
from trainer.inputs.conversion import convert
from trainer.inputs.images.pixels import Rows
from trainer.inputs.rows import TrainRows
from trainer.inputs.sources.shards import open_tfrecord

tf1 = tf.compat.v1

_IMAGES = 768
_BATCH_SIZE = 32
_SIZE = 224
_BURN_IN = 8


def write_images(folder: str) -> None:
    """Writes smooth random images with noise: as large as photographs of their size are."""
    random = np.random.default_rng(0)
    os.makedirs(os.path.join(folder, "class"))
    for number in range(_IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        pixels = np.clip(smooth + random.integers(-24, 25, smooth.shape), 0, 255)
        out = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG", quality=76)
        with open(os.path.join(folder, "class", f"{number}.jpg"), "wb") as file:
            file.write(out.getvalue())


class Pipeline(NamedTuple):
    """The tensors and operations of a graph that reads images.

    Attributes:
      images: the next batch, uint8 [batch, height, width, 3].
      initializer: operation that starts the reading.
      feeds: placeholders of the initializer, with their values.
    """

    images: tf.Tensor
    initializer: tf.Operation
    feeds: Mapping[tf.Tensor, int]


def build_bare(rows: Rows, threads: int) -> Pipeline:
    """Builds the operations that no pipeline can do without, on images in memory."""

    @tf.autograph.experimental.do_not_convert  # It would leave its source in a temporary file.
    def decode(contents: tf.Tensor, window: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_and_crop_jpeg(contents, window, channels=3)
        pixels = tf.image.resize(pixels, [_SIZE, _SIZE])
        return tf.cond(flip, lambda: tf.reverse(pixels, [1]), lambda: pixels)

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    images = tf.data.Dataset.from_tensor_slices(
        (tf.constant(list(rows.contents)), rows.windows, rows.randoms[:, 0] < 0.5)
    )
    images = images.repeat().map(decode, num_parallel_calls=threads)
    batches = images.batch(_BATCH_SIZE).prefetch(2).with_options(options)
    iterator = tf1.data.make_initializable_iterator(batches)
    return Pipeline(iterator.get_next(), iterator.initializer, feeds={})


def images_per_sec(build: Callable[[], Pipeline], seconds: float) -> float:
    """Measures the throughput of a pipeline, which `build` adds to a graph of its own."""
    with tf.Graph().as_default():
        pipeline = build()
        with tf1.Session() as session:
            session.run(pipeline.initializer, pipeline.feeds)
            for _ in range(_BURN_IN):
                session.run(pipeline.images.op)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                session.run(pipeline.images.op)
                count += _BATCH_SIZE
            return count / (time.perf_counter() - began)


def compare(folder: str, rounds: int, seconds: float) -> None:
    """Prints the throughputs on the cores of this process, and their ratios."""
    config = DataConfig(data_dir=folder, image_size=_SIZE, batch_size=_BATCH_SIZE)
    opened = {
        resize: dataset.open_dataset(dataclasses.replace(config, resize=resize))
        for resize in ("bilinear", "antialias")
    }
    threads = len(os.sched_getaffinity(0))
    split = open_tfrecord(config).train
    if split is None:
        raise UserError(f"--data_dir: {folder} has no train examples")
    # Without antialiasing JPEGs are decoded at full size, as the bare operations do.
    bare_config = dataclasses.replace(config, resize="bilinear")
    rows = TrainRows(bare_config, split, Worker(), seed=0).create(np.arange(_IMAGES), decode=False)

    def build_pipeline(resize: str) -> Pipeline:
        stream = opened[resize].build_train(Worker(), seed=0)
        return Pipeline(stream.batch.images, stream.initializer, {stream.start_step: 0})

    bare: list[float] = []
    ours: dict[str, list[float]] = {resize: [] for resize in opened}
    for _ in range(rounds):
        bare.append(images_per_sec(lambda: build_bare(rows, threads), seconds))
        for resize, rates in ours.items():
            rates.append(images_per_sec(functools.partial(build_pipeline, resize), seconds))
    print(f"{threads} cores: bare {statistics.median(bare):.0f} images/s", flush=True)
    for resize, rates in ours.items():
        ratio = statistics.median(one / other for one, other in zip(rates, bare, strict=True))
        print(
            f"{threads} cores: --resize={resize} {statistics.median(rates):.0f} images/s, "
            f"ratio {ratio:.3f}",
            flush=True,
        )


def main() -> None:
    """Measures on one core and on all cores, in a process each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=program.at_least(1), default=5, help="turns of each; %(default)s"
    )
    parser.add_argument(
        "--seconds",
        type=program.at_least(0.1, float),
        default=4.0,
        help="of each turn; %(default)s",
    )
    parser.add_argument(
        "--data_dir", type=os.path.expanduser, help="shards to use instead of making some"
    )
    arguments = parser.parse_args()
    if arguments.data_dir:
        compare(arguments.data_dir, arguments.rounds, arguments.seconds)
        return
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        write_images(os.path.join(folder, "images"))
        convert.convert(os.path.join(folder, "images"), os.path.join(folder, "shards"))
        for chosen in (cores[:1], cores):
            os.sched_setaffinity(0, chosen)
            options = [f"--rounds={arguments.rounds}", f"--seconds={arguments.seconds}"]
            shards = f"--data_dir={os.path.join(folder, 'shards')}"
            subprocess.run([sys.executable, __file__, shards, *options], check=True)


if __name__ == "__main__":
    program.run(main)
