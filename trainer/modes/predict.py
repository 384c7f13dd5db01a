"""--mode=predict: classifies image files."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tqdm import tqdm

from trainer.checkpoints import restore, search
from trainer.config import Config
from trainer.distributed import Worker
from trainer.errors import ConfigError
from trainer.graph.losses import build_probabilities
from trainer.graph.network import classify
from trainer.inputs.class_names import describe_names, name_classes
from trainer.inputs.dataset import Dataset, DatasetInfo
from trainer.inputs.source import BadImageError, Source
from trainer.inputs.sources import storage
from trainer.inputs.sources.named_files import find_files
from trainer.machine import session
from trainer.process import launcher, texts
from trainer.run import outputs
from trainer.run.predictions import Prediction, check_places, open_files
from trainer.safety.shortage import explain_shortage

# Of a shell's `<(command)`: pipes with an end.
_OPEN_FILES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


class _Files:
    """Image files as a split of a data set; the label of each file is its number."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.labels = np.arange(len(paths))
        self.reasons: dict[int, str] = {}
        self._paths = paths
        self._read_once: dict[int, bytes] = {}

    def note_bad(self, example: int, reason: str) -> None:
        self.reasons[example] = reason

    def read(self, index: int) -> bytes:
        path = self._paths[index]
        try:
            if path.startswith(_OPEN_FILES):
                # A pipe gives its bytes once, and a large image is asked for again.
                if index not in self._read_once:
                    self._read_once[index] = Path(path).read_bytes()
                return self._read_once[index]
            return storage.read_file(path)
        except OSError as error:
            raise BadImageError(error.strerror or "cannot be read") from error

    def where(self, index: int) -> str:
        return self._paths[index]


def run(config: Config) -> int:
    """Classifies each file that the command line names, and tells the most likely classes.

    Returns:
      the exit status: 1 where a file is not an image that can be read; the others are classified.
    """
    if not config.files:
        raise ConfigError("--mode=predict: must be followed by image files or folders, got none")
    launcher.refuse(config.mode)
    paths, left_out = find_files(config.files, sys.stdin)
    trained = outputs.as_trained(config)
    config, known_names = trained.config, trained.class_names
    prefix, skipped = search.choose(config.run)
    outputs.check_places(config, Worker(), logs=False)
    check_places(config.prediction)
    num_classes = restore.count_classes(prefix, config.model.num_classes)
    names = name_classes(known_names, num_classes)
    unnamed = describe_names(known_names, num_classes)
    outputs.remark(*skipped, *trained.remarks, *unnamed, *left_out)
    tally = _Tally(keeps=config.run.result_json is not None)
    with (
        explain_shortage(config, trains=False),
        open_files(config.prediction, names, is_labelled=False) as written,
        _progress(config, len(paths)) as tell,
    ):
        for path, found in _classify(config, paths, prefix, num_classes):
            if isinstance(found, str):
                tally.unread += 1
                written.add_unreadable(path, found)
                written.flush()
                tell(f"slim-horovod: {texts.printable(path)}: {found}", sys.stderr)
                continue
            prediction = Prediction(path, *found)
            written.add(prediction)
            written.flush()
            tally.add(prediction, names)
            tell(None if config.prediction.is_wanted else _describe(prediction, names), sys.stdout)
    outputs.report(config, Worker(), {"predictions": tally.kept}, text=tally.describe())
    return 1 if tally.unread else 0


class _Tally:
    """Counts the files that were classified, and keeps what --result_json has to have of them."""

    def __init__(self, *, keeps: bool) -> None:
        self.count = 0
        self.unread = 0
        self.kept: list[dict[str, Any]] = []
        self._keeps = keeps

    def add(self, prediction: Prediction, names: Sequence[str]) -> None:
        """Adds a file that was classified."""
        self.count += 1
        if self._keeps:
            self.kept.append({"file": prediction.name, "classes": prediction.describe(names)})

    def describe(self) -> str:
        """Returns the last line."""
        unread = f"; {self.unread} could not be read" if self.unread else ""
        return f"{self.count} files classified{unread}" if self.count else "nothing was classified"


def _describe(prediction: Prediction, names: Sequence[str]) -> str:
    """Returns a line about a file: its most likely classes, with their probabilities."""
    shares = ", ".join(
        f"{texts.printable(names[index])} {prediction.probabilities[index]:.4f}"
        for index in prediction.best()
    )
    return f"{texts.printable(prediction.name)}: {shares or 'none: its logits are not numbers'}"


@contextlib.contextmanager
def _progress(config: Config, count: int) -> Iterator[Callable[[str | None, TextIO], None]]:
    """Yields what counts a file and prints a line about it; on a terminal, below is a bar.

    Not where predictions are printed on the same terminal, through which the bar would run.
    """
    is_mixed = config.prediction.takes_standard_output and sys.stdout.isatty()
    with tqdm(
        total=count,
        unit="file",
        file=sys.stderr,
        disable=not sys.stderr.isatty() or is_mixed,
        dynamic_ncols=True,
    ) as bar:

        def tell(line: str | None, stream: TextIO) -> None:
            if line is not None and bar.disable:
                print(line, file=stream, flush=True)
            elif line is not None:
                bar.write(line, file=stream)
                stream.flush()
            bar.update()

        yield tell


def _classify(
    config: Config, paths: Sequence[str], prefix: str, num_classes: int
) -> Iterator[tuple[str, tuple[npt.NDArray[Any], npt.NDArray[Any]] | str]]:
    """Yields each file with its logits and probabilities, float32 [num_classes] each.

    The files come in their order, batch by batch; the one that can't be read with a line about why.
    """
    data = dataclasses.replace(config.data, max_bad_examples=len(paths))
    split = _Files(paths)
    files = Source("files", None, split, num_classes, None, "files")
    info = DatasetInfo("files", 0, len(paths), num_classes, None, "files")
    with tf.Graph().as_default():
        stream = Dataset(data, files, info).build_evaluation(Worker())
        logits = classify(config, stream.batch.images, num_classes=num_classes)
        probabilities = build_probabilities(logits, config.optimizer.loss)
        fetches = (logits, probabilities, stream.batch.weights)
        with session.open_session(model=config.model) as predict_session:
            restore.restore_weights(
                predict_session,
                prefix,
                restore.network_variables(),
                averages=config.fine_tuning.init_averages,
            )
            predict_session.run(stream.initializer, {stream.start_step: 0})
            waiting = iter(enumerate(paths))
            for _ in range(stream.steps or 0):
                # Rows come first: at the end of a batch, zip must not take one path more. The last
                # batch is filled up, with rows for which there is no path.
                rows = zip(*predict_session.run(fetches), strict=True)
                for (logits_of, shares_of, weight), (number, path) in zip(
                    rows, waiting, strict=False
                ):
                    if weight > 0:
                        yield path, (logits_of, shares_of)
                    else:
                        reason = split.reasons.get(number, "for an unknown reason")
                        yield path, f"is not an image that can be read: {reason}"
