"""`--dataset=folder`: `D/train/<class>/*.jpg` and `D/validation/<class>/*`, or `D/<class>/*`."""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.errors import UserError
from trainer.inputs.images import encoded
from trainer.inputs.source import BadImageError, Source
from trainer.inputs.sources import storage

_SPLIT_SEED = 0


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


def _refuse_link_out(path: str, root: str) -> None:
    """Raises UserError for a link that leaves the data set's folder."""
    if storage.is_remote(path) or not os.path.islink(path):
        return
    target = os.path.realpath(path)
    if os.path.commonpath((target, os.path.realpath(root))) != os.path.realpath(root):
        raise UserError(
            f"{path}: a link out of the data set's folder, to {target}. "
            "Put the files themselves there, or remove it."
        )


def list_classes(folder: str, root: str) -> dict[str, list[str]]:
    """Lists the image files of each class; classes and files are sorted by name.

    Args:
      folder: a folder with one folder per class. Names that begin with a dot are ignored.
      root: the folder of the data set, out of which no link may lead.

    Raises:
      UserError: a link leads out, or a class is empty.
    """
    classes: dict[str, list[str]] = {}
    suffixes = encoded.image_suffixes()
    for name in storage.list_folder(folder):
        path = os.path.join(folder, name)
        if name.startswith(".") or not storage.is_folder(path):
            continue
        _refuse_link_out(path, root)
        files = [
            os.path.join(path, file)
            for file in storage.list_folder(path)
            if file.lower().endswith(suffixes) and not file.startswith(".")
        ]
        for file in files:
            _refuse_link_out(file, root)
        if not files:
            raise UserError(
                f"{path}: a class without images (names end in {', '.join(suffixes)}). "
                "Remove the folder, or put its images there."
            )
        classes[name] = files
    return classes


def name_digest(path: str, root: str, seed: int) -> bytes:
    """Returns a key that sorts paths at random, by seed and by name within the folder `root`."""
    name = path[len(root) :].lstrip("/")
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()


def held_out(paths: Sequence[str], root: str, count: int) -> set[str]:
    """Chooses `count` of one class's paths to validate on: the same in every run."""
    ranked = sorted(paths, key=lambda path: name_digest(path, root, _SPLIT_SEED))
    return set(ranked[:count])


def split_counts(class_sizes: Sequence[int], fraction: float) -> list[int]:
    """Returns how many of each class to hold out: `fraction` of all, as evenly as possible.

    The sum is rounded up. The classes with the largest remainders give one more, so that it is
    exact.
    """
    shares = np.array(class_sizes) * fraction
    counts = np.floor(shares).astype(int)
    lacking = math.ceil(sum(class_sizes) * fraction) - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:lacking]] += 1
    return counts.tolist()


def list_images(folder: str, validation_fraction: float) -> dict[str, dict[str, list[str]]]:
    """Returns {split: {class: files}} of a folder of images; every split has the same classes.

    Raises:
      UserError: it holds no images, its splits do not agree, or --validation_fraction contradicts.
    """
    if "train" not in storage.list_folder(folder):
        splits = _hold_out(list_classes(folder, folder), folder, validation_fraction)
    elif validation_fraction:
        raise UserError(
            f"--validation_fraction: must not be given where {folder} has a folder train, "
            f"got {validation_fraction:g}"
        )
    else:
        splits = _list_splits(folder)
    if not splits["train"]:
        raise UserError(
            f"--data_dir: {folder} has no images in one folder per class "
            "(train/<class>/*.jpg, or <class>/*.jpg)"
        )
    return splits


def _list_splits(folder: str) -> dict[str, dict[str, list[str]]]:
    """Lists the images in the subfolders train and, if there is one, validation."""
    splits: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "validation"):
        path = os.path.join(folder, split)
        if storage.is_folder(path):
            _refuse_link_out(path, folder)
            splits[split] = list_classes(path, folder)
    classes = splits["train"]
    for name in splits.get("validation", {}):
        if name not in classes:
            raise UserError(
                f"{folder}/validation/{name}: a class that {folder}/train does not have"
            )
    return {
        split: {name: found.get(name, []) for name in classes} for split, found in splits.items()
    }


def _hold_out(
    classes: dict[str, list[str]], folder: str, fraction: float
) -> dict[str, dict[str, list[str]]]:
    """Divides the files of each class into train and, where `fraction` is above 0, validation."""
    if not fraction:
        return {"train": classes}
    counts = split_counts([len(paths) for paths in classes.values()], fraction)
    chosen = {
        name: held_out(paths, folder, count)
        for (name, paths), count in zip(classes.items(), counts, strict=True)
    }
    for name, paths in classes.items():
        if len(chosen[name]) == len(paths):
            raise UserError(
                f"--validation_fraction: leaves no image of {folder}/{name} to train on, "
                f"got {fraction:g}"
            )
    return {
        "train": {n: [p for p in paths if p not in chosen[n]] for n, paths in classes.items()},
        "validation": {n: [p for p in paths if p in chosen[n]] for n, paths in classes.items()},
    }


def open_folder(config: DataConfig) -> Source:
    """Lists the images in `--data_dir`. Classes are numbered by the order of their names."""
    folder = config.data_dir or ""
    splits = list_images(folder, config.validation_fraction)
    classes = tuple(splits["train"])
    digest = hashlib.sha256()
    opened = {}
    for split, files in splits.items():
        paths = [path for name in classes for path in files[name]]
        labels = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
        opened[split] = FolderSplit(paths, labels.astype(np.int64))
        names = "\0".join(path[len(folder) :] for path in paths)
        digest.update(f"{split}\0{names}\0".encode(errors="surrogateescape"))
    return Source(
        name="folder",
        train=opened["train"],
        validation=opened.get("validation"),
        num_classes=len(classes),
        class_names=classes,
        fingerprint=digest.hexdigest()[:16],
    )
