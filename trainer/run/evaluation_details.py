"""Details of a network's errors: what an evaluation tells besides its accuracy and its loss."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.distributed import Group
from trainer.graph.evaluation import EvaluationGraph, Predictions
from trainer.inputs.dataset import DatasetInfo
from trainer.inputs.order import global_positions
from trainer.run.predictions import Prediction, PredictionFiles

# Up to which there is a confusion matrix: of more, it has millions of numbers. Slim's ImageNet has
# 1,001 classes, with the background.
MAX_CLASSES = 1001
_BINS = 15  # As in arXiv:1706.04599.


class EvaluationDetails:
    """Counts the examples of each class, the confusions, and how far confidence is from accuracy.

    The expected calibration error is that of arXiv:1706.04599: examples are put into 15 bins of
    equal width by the probability of the class that is predicted; it is the mean over all examples
    of the distance between their bin's accuracy and its mean probability.
    """

    def __init__(self, info: DatasetInfo) -> None:
        """Begins without examples."""
        self._names = info.names_of_classes
        classes = info.num_classes
        self._has_matrix = classes <= MAX_CLASSES
        self._counts = np.zeros(classes, np.int64)
        self._right = np.zeros(classes, np.int64)
        self._matrix = np.zeros((classes, classes) if self._has_matrix else (0, 0), np.int64)
        self._bins = np.zeros((3, _BINS))

    def fetches(self, evaluation: EvaluationGraph) -> Any:
        """Returns what `add` needs of a batch."""
        return evaluation.predictions, evaluation.confidences, evaluation.stream.batch.weights

    def add(
        self,
        values: tuple[Predictions, npt.NDArray[Any], npt.NDArray[Any]],
        name_of: Callable[[int], str],
    ) -> None:
        """Adds a batch: the values of `fetches`."""
        del name_of
        predictions, confidences, weights = values
        np.add.at(self._counts, predictions.labels[weights > 0], 1)
        # Where a logit is no number, no class is predicted: the example is wrong.
        has_order = predictions.weights > 0
        labels, classes = predictions.labels[has_order], predictions.classes[has_order]
        confidences = confidences[has_order].astype(np.float64)
        is_right = labels == classes
        np.add.at(self._right, labels[is_right], 1)
        if self._has_matrix:
            np.add.at(self._matrix, (labels, classes), 1)
        # Bins are closed above, as in the paper: a probability of 1 lies in the last one.
        bins = np.clip(np.ceil(confidences * _BINS).astype(int) - 1, 0, _BINS - 1)
        for row, values_of in enumerate((np.ones(len(bins)), confidences, is_right)):
            np.add.at(self._bins[row], bins, values_of)

    def summarize(self, group: Group) -> dict[str, Any]:
        """Returns the fields for --result_json. A collective.

        They are `calibration_error`, `classes` (per class its name, the number of its examples and
        of those that were right, and their share) and `confusion`: a row per label, a column per
        prediction; null for more than 1,001 classes.
        """
        counts, right, matrix, bins = (
            np.sum(group.gather(part.tolist()), axis=0)
            for part in (self._counts, self._right, self._matrix, self._bins)
        )
        confident, accurate = bins[1], bins[2]
        total = bins[0].sum()
        return {
            "calibration_error": float(np.abs(confident - accurate).sum() / total)
            if total
            else 0.0,
            "classes": [
                {
                    "name": name,
                    "count": int(count),
                    "right": int(among),
                    "top1": int(among) / int(count) if count else None,
                }
                for name, count, among in zip(self._names, counts, right, strict=True)
            ],
            "confusion": matrix.tolist() if self._has_matrix else None,
        }


class EvaluationPredictions:
    """Writes what the network says of each example, in their order, on rank 0."""

    def __init__(
        self,
        group: Group,
        written: PredictionFiles | None,
        count: int,
        name_of: Callable[[int], str],
    ) -> None:
        """Begins before the first batch.

        Args:
          group: the workers. All of them add the same number of batches.
          written: the files, on rank 0; None on others.
          count: number of validation examples.
          name_of: function that returns the name of a validation example by its number.
        """
        self._group = group
        self._written = written
        self._count = count
        self._name_of = name_of
        self._step = 0

    def fetches(self, evaluation: EvaluationGraph) -> Any:
        """Returns what `add` needs of a batch."""
        batch = evaluation.stream.batch
        return evaluation.logits, evaluation.probabilities, batch.labels, batch.weights

    def add(self, values: Sequence[npt.NDArray[Any]], name_of: Callable[[int], str]) -> None:
        """Adds a batch: the values of `fetches`. A collective."""
        del name_of  # It is a short one.
        logits, probabilities, labels, weights = values
        local = self._step * len(labels) + np.arange(len(labels))
        positions = global_positions(local, self._group.worker, len(labels))
        self._step += 1
        rows = np.flatnonzero(positions < self._count)  # The last batch is filled up.
        mine = [part[rows].tolist() for part in (weights, positions, logits, probabilities, labels)]
        # The workers' batches of a step follow each other in the order of the examples.
        for parts in self._group.gather(mine):
            if self._written is not None:
                self._write(self._written, *parts)

    def _write(
        self,
        written: PredictionFiles,
        weights: Sequence[float],
        positions: Sequence[int],
        logits: Sequence[Any],
        probabilities: Sequence[Any],
        labels: Sequence[int],
    ) -> None:
        for weight, position, scores, shares, label in zip(
            weights, positions, logits, probabilities, labels, strict=True
        ):
            name = self._name_of(position)
            if not weight:
                written.add_unreadable(name, "is not an image that can be read", label)
                continue
            prediction = Prediction(
                name,
                logits=np.array(scores, np.float32),
                probabilities=np.array(shares, np.float32),
                label=label,
            )
            written.add(prediction)
        written.flush()
