"""What a data set gives to the pipeline: encoded images by number, and their labels.

The built-in kinds (TFRecord shards, a folder of images) and plug-ins alike are functions from
`DataConfig` to a `Source`. `--dataset=package.module:function` names such a function:

    class Flags:
        def __init__(self, folder):
            self.paths = sorted(pathlib.Path(folder).glob("*.png"))
            self.labels = np.array([int(path.name[0]) for path in self.paths])

        def read(self, example):
            return self.paths[example].read_bytes()

        def where(self, example):
            return str(self.paths[example])

    def open_flags(config):
        train = Flags(config.data_dir)
        return Source("flags", train, None, num_classes=10, class_names=None, fingerprint="1")
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from trainer.config import DataConfig


class BadImageError(Exception):
    """An image that cannot be decoded. The message says why, without saying which image."""


class Split(Protocol):
    """Examples numbered from 0. Several threads call its methods at the same time."""

    @property
    def labels(self) -> npt.NDArray[Any]:
        """int64 [number of examples]: classes from 0."""

    def read(self, example: int) -> bytes:
        """The encoded image, in a format of `trainer.inputs.images.encoded`.

        Raises:
          BadImageError: this example has none; it counts against --max_bad_examples.
          UserError: the data set is damaged; the run ends.
        """

    def where(self, example: int) -> str:
        """Names the example in a message: file and record."""


class Source(NamedTuple):
    """A data set.

    Attributes:
      name: of the kind of data set.
      train, validation: None where there is no such split.
      num_classes: None: as many as the largest label says.
      class_names: by label; None: not known.
      fingerprint: a text that changes when the data set does.
    """

    name: str
    train: Split | None
    validation: Split | None
    num_classes: int | None
    class_names: tuple[str, ...] | None
    fingerprint: str


OpenFn = Callable[[DataConfig], Source]
