"""`--dataset=folder`: a folder of images for each class."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.inputs.source import BadImageError, Source
from trainer.inputs.sources import listing, storage
from trainer.inputs.sources.background import names_of_background


class FolderSplit:
    """A split of image files."""

    def __init__(self, paths: Sequence[str], labels: npt.NDArray[Any]) -> None:
        self.labels = labels
        self._paths = paths

    def read(self, example: int) -> bytes:
        try:
            return storage.read_file(self._paths[example])
        except OSError as error:
            raise BadImageError(f"cannot be read ({error.strerror})") from error

    def where(self, example: int) -> str:
        return self._paths[example]

    def short_name(self, example: int) -> str:
        return "/".join(self._paths[example].split("/")[-2:])  # Its class, and its file.


def open_folder(config: DataConfig) -> Source:
    """Lists the images in `--data_dir`. Classes are numbered by the order of their names."""
    folder = config.data_dir or ""
    images = listing.list_images(
        folder, config.validation_fraction, follow_links=config.follow_links
    )
    splits = images.splits
    classes = tuple(next(iter(splits.values())))
    background = names_of_background(config.label_offset, 0)
    digest = hashlib.sha256()
    opened = {}
    for split, files in splits.items():
        paths = [path for name in classes for path in files[name]]
        labels = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
        opened[split] = FolderSplit(paths, labels.astype(np.int64) + len(background))
        names = "\0".join(path[len(folder) :] for path in paths)
        digest.update(f"{split}\0{names}\0".encode(errors="surrogateescape"))
    return Source(
        name="folder",
        train=opened.get("train"),
        validation=opened.get("validation"),
        num_classes=len(background) + len(classes),
        class_names=(*background, *classes),
        fingerprint=digest.hexdigest()[:16],
        remarks=images.remarks,
    )
