"""Compares an exported network, loaded in a process of its own, with the checkpoint's."""

import dataclasses
import io
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from PIL import Image

from trainer import exit_status
from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs.images.by_pillow import MAX_PIXELS
from trainer.inputs.images.graph_decoders import RATIOS
from trainer.inputs.images.pixels import ROW_SHAPES, ROW_TYPES, Rows, build_pixels
from trainer.inputs.images.reduction import GAP
from trainer.inputs.rows import EvaluationRows
from trainer.inputs.source import Split
from trainer.modes.export.formats import Format

# By how much logits may differ, as a share of the largest: many times what rounding makes of
# resnet_v2_200, and little beside what a wrong operation does.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
_PROGRAM = Path(__file__).with_name("loaded.py")
_TIMEOUT_SEC = 1800.0
_SEED = 1


class Examples:
    """Pictures of several sizes, as a split of a data set: clouds of colour, the same each time.

    Attributes:
      encoded: the pictures: JPEG and PNG.
      labels: a class for each, which nothing reads.
      pixels: the pixels that an evaluation makes of them: uint8 [n, image_size, image_size, 3].
    """

    def __init__(self, config: DataConfig) -> None:
        """Makes the pictures for a network's input, from smaller ones to those that are reduced."""
        size = config.image_size
        # The least side of a crop of which a JPEG is reduced: see `reduction.find_parts`.
        reduced = RATIOS[1] * GAP * size
        large = math.ceil(reduced / config.crop_fraction) + 2
        shapes = (
            (size, size, "PNG"),
            (large + large // 4, large, "JPEG"),
            (size + 9, 2 * size, "JPEG"),
            (7, 9, "PNG"),
        )
        self.encoded = [
            _draw(number, *shape)
            for number, shape in enumerate(shapes)
            if shape[0] * shape[1] <= MAX_PIXELS
        ]
        self.labels = np.zeros(len(self.encoded), np.int64)
        # From a cache, crops are cut of whole decoded images, which a server does not do.
        config = dataclasses.replace(config, batch_size=len(self.encoded), cache="none")
        self.pixels = _decode(self, config)

    def read(self, example: int) -> bytes:
        return self.encoded[example]

    def where(self, example: int) -> str:
        return f"example {example}"


def _draw(seed: int, width: int, height: int, image_format: str) -> bytes:
    coarse = np.random.default_rng([_SEED, seed]).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    out = io.BytesIO()
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(out, image_format)
    return out.getvalue()


def _decode(split: Split, config: DataConfig) -> npt.NDArray[Any]:
    """Returns the pixels that an evaluation has, of as many examples as are in its batch."""
    rows = EvaluationRows(config, split, Worker()).create(np.arange(config.batch_size), decode=True)
    with tf.Graph().as_default():
        row = Rows(*map(tf1.placeholder, ROW_TYPES, ROW_SHAPES))
        pixels = build_pixels(row, config, training=False)
        with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
            feeds = [dict(zip(row, values, strict=True)) for values in zip(*rows, strict=True)]
            return np.stack([session.run(pixels, feed) for feed in feeds])


def compare(
    exported: Path,
    export_format: Format,
    examples: Examples,
    expected: npt.NDArray[Any],
    precision: str,
) -> float:
    """Runs all signatures in a new process; returns the largest difference that they have.

    Args:
      exported: the folder of the exported network.
      export_format: its format.
      examples: the images.
      expected: the logits of the checkpoint's own network: float32 [n, num_classes].
      precision: --export_precision.

    Returns:
      the difference as a share of the largest logit.

    Raises:
      UserError: the process fails, or its logits are others.
    """
    scale = max(1.0, float(np.abs(expected).max()))
    largest = 0.0
    for name, logits in _run(exported, export_format, examples).items():
        difference = float(np.abs(logits - expected).max()) / scale
        if not difference <= _TOLERANCES[precision]:  # Also where it is not a number.
            raise UserError(
                f"--export_dir: not written: the signature {name}, loaded again, makes logits that "
                f"differ by {difference:.2g} of the largest from the checkpoint's own, where "
                f"{_TOLERANCES[precision]:g} is allowed in {precision}",
                status=exit_status.FAILED,
            )
        largest = max(largest, difference)
    return largest


def _run(exported: Path, export_format: Format, examples: Examples) -> dict[str, npt.NDArray[Any]]:
    """Returns the logits of each signature, by its name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "pixels.npy", examples.pixels)
        for number, data in enumerate(examples.encoded):
            (folder / f"{number:03}.image").write_bytes(data)
        try:
            done = subprocess.run(
                [sys.executable, str(_PROGRAM), str(exported), name],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_SEC,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _unusable(export_format, f"no end after {_TIMEOUT_SEC:g} s") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
            raise _unusable(export_format, reason)
        return {name: np.load(folder / f"{name}.npy") for name in export_format.signatures}


def _unusable(export_format: Format, reason: str) -> UserError:
    return UserError(
        f"--export_dir: not written: loaded again by {export_format.runtime} alone, it fails "
        f"({reason})",
        status=exit_status.FAILED,
    )
