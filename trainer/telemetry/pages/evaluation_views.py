"""Pictures of an evaluation: the confusion matrix, and misclassified images."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.distributed import Group, Worker
from trainer.graph.evaluation import EvaluationGraph, Predictions
from trainer.process import texts
from trainer.telemetry.pages import pictures
from trainer.telemetry.writers.protocol import Writer

MAX_CLASSES = 50
CONFUSION_TAG = "eval/confusion"
MISCLASSIFIED_TAG = "eval/misclassified"
_IMAGES = 16


class EvaluationViews(Protocol):
    """Collects an evaluation's predictions, and shows them."""

    def fetches(self, evaluation: EvaluationGraph) -> Any:
        """Returns what `add` needs of the next batch."""

    def add(self, values: Any, name_of: Callable[[int], str]) -> None:
        """Adds a batch.

        Args:
          values: the values of `fetches`.
          name_of: function that returns the name of the example in a row of the batch, which may
            take a look into its file.
        """

    def publish(self, step: int, group: Group) -> None:
        """Writes the pictures, and forgets the predictions. A collective.

        Args:
          step: number of the step whose variables were evaluated.
          group: the workers, whose matrices are added up.
        """


class NullEvaluationViews:
    """The views of a run without a --logdir."""

    def fetches(self, evaluation: EvaluationGraph) -> Any:
        del evaluation
        return ()

    def add(self, values: Any, name_of: Callable[[int], str]) -> None:
        del values, name_of

    def publish(self, step: int, group: Group) -> None:
        del step, group


class DrawnEvaluationViews:
    """Draws the confusion matrix, and a sheet of misclassified images.

    All workers count for the matrix, unless there are too many classes for one; rank 0 alone
    collects images, of its own part of the examples.
    """

    def __init__(self, writer: Writer, *, names: Sequence[str], images: int) -> None:
        """Begins without predictions.

        Args:
          writer: writer of the pictures.
          names: names of the classes.
          images: number of misclassified images to collect.
        """
        self._writer = writer
        self._names = [texts.printable(name) for name in names]
        self._max_images = images
        self._clear()

    def _clear(self) -> None:
        """Forgets the predictions up to now."""
        classes = len(self._names)
        self._counts = np.zeros((classes, classes) if classes <= MAX_CLASSES else (0, 0), np.int64)
        self._images: list[npt.NDArray[Any]] = []
        self._captions: list[str] = []
        self._image_names: list[str] = []

    def fetches(self, evaluation: EvaluationGraph) -> Any:
        wanted = len(self._images) < self._max_images  # Copying images takes time.
        return evaluation.predictions, evaluation.stream.batch.images if wanted else ()

    def add(
        self, values: tuple[Predictions, npt.NDArray[Any]], name_of: Callable[[int], str]
    ) -> None:
        predictions, images = values
        rows = np.flatnonzero(predictions.weights > 0)
        labels, classes = predictions.labels[rows], predictions.classes[rows]
        if self._counts.size:
            np.add.at(self._counts, (labels, classes), 1)
        if len(images) == 0:
            return
        wrong = rows[labels != classes]
        for row in wrong[: self._max_images - len(self._images)]:
            right, taken_for = (
                self._names[number]
                for number in (predictions.labels[row], predictions.classes[row])
            )
            self._images.append(images[row])
            self._captions.append(f"{right}\nnot {taken_for}")
            self._image_names.append(texts.printable(name_of(int(row))))

    def publish(self, step: int, group: Group) -> None:
        if self._counts.size:
            counts = np.sum(group.gather(self._counts.tolist()), axis=0)
            self._write(step, CONFUSION_TAG, pictures.draw_confusion(counts, self._names))
        if self._images:
            sheet = pictures.draw_sheet(self._images, self._captions, self._image_names)
            self._write(step, MISCLASSIFIED_TAG, sheet)
        self._clear()

    def _write(self, step: int, tag: str, picture: Any) -> None:
        summary = pictures.build_image(tag, picture)
        self._writer.write_summary(step, summary, wall_time=time.time())


def create_evaluation_views(
    logdir: str | None, worker: Worker, writer: Writer, names: Sequence[str]
) -> EvaluationViews:
    """Returns the views of one worker; `names` are those of the classes."""
    if logdir is None:
        return NullEvaluationViews()
    return DrawnEvaluationViews(writer, names=names, images=_IMAGES if worker.rank == 0 else 0)
