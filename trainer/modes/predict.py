"""--mode=predict: classifies image files."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import restore, search
from trainer.config import Config
from trainer.distributed import Worker
from trainer.errors import ConfigError
from trainer.graph.network import classify
from trainer.inputs.class_names import name_classes
from trainer.inputs.dataset import Dataset, DatasetInfo
from trainer.inputs.source import BadImageError, Source
from trainer.machine import session
from trainer.process import launcher, texts
from trainer.run import outputs
from trainer.safety.shortage import explain_shortage

_BEST = 5


class _Files:
    """Image files as a split of a data set; the label of each file is its number."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.labels = np.arange(len(paths))
        self._paths = paths

    def read(self, index: int) -> bytes:
        try:
            return Path(self._paths[index]).read_bytes()
        except OSError as error:
            raise BadImageError(error.strerror or "cannot be read") from error

    def where(self, index: int) -> str:
        return self._paths[index]


def run(config: Config) -> int:
    """Prints the most likely classes of each file that the command line names.

    Returns:
      the exit status: 1 where a file is not an image that can be read; the others are classified.
    """
    if not config.files:
        raise ConfigError("--mode=predict: must be followed by image files, got none")
    launcher.refuse(config.mode)
    config, _, known_names, remarks = outputs.as_trained(config)
    prefix, skipped = search.choose(config.run)
    outputs.check_places(config, Worker())
    num_classes = restore.count_classes(prefix)
    names = name_classes(known_names, num_classes)
    outputs.remark(*skipped, *remarks)
    with explain_shortage(config, trains=False):
        found = _classify(config, prefix, num_classes)
    predictions = []
    lines = []
    for number, (logits, probabilities) in found.items():
        # By logits: different ones may have the same probability, as rounded.
        best = [int(index) for index in np.argsort(-logits, kind="stable")[:_BEST]]
        likely = [
            {"class": index, "name": names[index], "probability": float(probabilities[index])}
            for index in best
        ]
        predictions.append({"file": config.files[number], "classes": likely})
        shares = ", ".join(
            f"{texts.printable(names[index])} {probabilities[index]:.4f}" for index in best
        )
        lines.append(f"{texts.printable(config.files[number])}: {shares}")
    result = {"predictions": predictions}
    outputs.report(config, Worker(), result, text="\n".join(lines) or "nothing was classified")
    unread = [name for number, name in enumerate(config.files) if number not in found]
    for name in unread:
        text = f"{texts.printable(name)}: is not an image that can be read"
        print(f"slim-horovod: {text}", file=sys.stderr)
    return 1 if unread else 0


def _classify(
    config: Config, prefix: str, num_classes: int
) -> dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Returns logits and probabilities, float32 [num_classes], of each readable file by number."""
    data = dataclasses.replace(config.data, max_bad_examples=len(config.files))
    files = Source("files", None, _Files(config.files), num_classes, None, "files")
    info = DatasetInfo("files", 0, len(config.files), num_classes, None, "files")
    found = {}
    with tf.Graph().as_default():
        stream = Dataset(data, files, info).build_evaluation(Worker())
        logits = classify(config, stream.batch.images, num_classes=num_classes)
        predictions = (logits, tf.nn.softmax(logits))
        fetches = (predictions, stream.batch.labels, stream.batch.weights)
        with tf1.Session(config=session.create_config(model=config.model)) as predict_session:
            restore.restore_weights(
                predict_session, prefix, restore.network_variables(), new_logits=False
            )
            predict_session.run(stream.initializer, {stream.start_step: 0})
            for _ in range(stream.steps or 0):
                predicted, numbers, weights = predict_session.run(fetches)
                for *row, number, weight in zip(*predicted, numbers, weights, strict=True):
                    if weight > 0:
                        found[int(number)] = tuple(row)
    return dict(sorted(found.items()))
