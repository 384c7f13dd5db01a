"""The contract of data sets: encoded images by number, and their labels.

Every kind of data set, built in (TFRecord shards, a folder of images) or a plug-in, is a function
from `DataConfig` to a `Source`. `--dataset=package.module:function` names such a function:

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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy.typing as npt

from trainer.config import DataConfig


class BadImageError(Exception):
    """An image that cannot be decoded. The message says why, without saying which image."""


class Split(Protocol):
    """Examples numbered from 0. Several threads call its methods at the same time.

    A split may also have a method `short_name(example)`: the name below a picture of an example,
    which is else that of `where`.
    """

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The classes, from 0: int64 [number of examples]."""

    def read(self, example: int) -> bytes:
        """Returns the encoded image, in a format of `trainer.inputs.images.encoded`.

        Raises:
          BadImageError: there is no image that can be read; it counts against --max_bad_examples.
          UserError: the data set is damaged; the run ends.
        """

    def where(self, example: int) -> str:
        """Returns the example's name for a message: file and record."""


def name_of(split: Split, example: int) -> str:
    """Returns the name of an example for a picture: what its file is called, if it has one."""
    find_name: Callable[[int], str] = getattr(split, "short_name", split.where)
    return find_name(example)


@runtime_checkable
class NotesBad(Protocol):
    """A split that is told of its bad images, which are not logged then."""

    def note_bad(self, example: int, reason: str) -> None:
        """Takes the reason why an image can't be read; called once for each, by any thread."""


class Source(NamedTuple):
    """A data set.

    Attributes:
      name: the name of the kind of data set.
      train, validation: the splits. None: there is no such split.
      num_classes: the number of classes. None: one more than the largest label.
      class_names: the names of the classes, by label. None: not known.
      fingerprint: a text that changes when the data set does.
      remarks: lines for the user, such as what is left out.
      turns_upright: whether images are turned as their EXIF orientation says, unless
        --exif_orientation says otherwise.
    """

    name: str
    train: Split | None
    validation: Split | None
    num_classes: int | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    remarks: tuple[str, ...] = ()
    turns_upright: bool = True


OpenFn = Callable[[DataConfig], Source]
