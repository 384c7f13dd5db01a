"""What a data set gives to the pipeline: encoded images by number, and their labels.

The built-in kinds (TFRecord shards, a folder of images) and plug-ins alike are functions from
`DataConfig` to a `Source`. `--dataset=package.module:function` names such a function; README.md
shows one.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from trainer.config import DataConfig


class Split(Protocol):
    """Examples numbered from 0. Several threads call its methods at the same time."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [number of examples]: classes from 0."""

    def read(self, example: int) -> bytes:
        """The encoded image (JPEG or PNG).

        Raises:
          BadImageError: this example has none; it counts against --max_bad_examples.
          UserError: the data set is damaged; the run ends.
        """

    def where(self, example: int) -> str:
        """Names the example in a message: file and record."""


class Source(NamedTuple):
    """A data set. `num_classes` None: as many as the largest label says."""

    name: str
    train: Split | None
    validation: Split | None
    num_classes: int | None
    class_names: tuple[str, ...] | None
    fingerprint: str


OpenFn = Callable[[DataConfig], Source]
