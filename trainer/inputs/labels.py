"""The labels of a data set: whether a network has their classes, and how often each comes."""

import numpy as np

from trainer.errors import UserError
from trainer.inputs.source import Source


def check_labels(source: Source, num_classes: int) -> None:
    """Raises UserError, with an example, where labels are not in 0 to num_classes - 1."""
    for name, split in (("train", source.train), ("validation", source.validation)):
        if split is None or len(split.labels) == 0:
            continue
        smallest, largest = int(split.labels.min()), int(split.labels.max())
        if smallest < 0 or largest >= num_classes:
            wrong = int(np.argmax((split.labels < 0) | (split.labels >= num_classes)))
            raise UserError(
                f"--num_classes: labels of the {name} split go from {smallest} to {largest} after "
                f"--label_offset, where 0 to {num_classes - 1} are allowed; the first other one "
                f"is {int(split.labels[wrong])}, {split.where(wrong)}"
            )


def count_examples(source: Source, num_classes: int) -> tuple[tuple[int, int], ...]:
    """Returns the numbers of training and of validation examples of each class."""
    counts = [
        np.bincount(np.asarray(labels, np.int64), minlength=num_classes).tolist()
        for labels in (
            () if split is None else split.labels for split in (source.train, source.validation)
        )
    ]
    return tuple(zip(*counts, strict=True))
