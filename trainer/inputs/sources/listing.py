"""Finds the images in a folder: in `train/<class>` and `validation/<class>`, or in `<class>`.

In the second case some can be held out, which is decided by their names: the same in every run.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.errors import UserError
from trainer.inputs.images import encoded
from trainer.inputs.sources import storage
from trainer.inputs.sources.left_out import LeftOut, describe_first, is_hidden

# The folders of each split, by any of these names.
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid")}
# What people call parts of a data set: such folders are no classes where there are no others.
_PARTS = {"train", "training", "validation", "val", "valid", "dev", "eval", "test", "testing"}
_SPLIT_SEED = 0


class Images(NamedTuple):
    """The images of a folder.

    Attributes:
      splits: the paths of the images, by split and by class; every split has the same classes.
      left_out: the files that are not read.
      without_validation: the number of classes that have no image that was held out.
    """

    splits: dict[str, dict[str, list[str]]]
    left_out: LeftOut
    without_validation: int = 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines about what is not read, or not as one would expect."""
        lines = [self.left_out.describe()]
        if self.without_validation:
            what = "classes have" if self.without_validation > 1 else "class has"
            lines.append(
                f"{self.without_validation} {what} no validation image, with too few for "
                "--validation_fraction"
            )
        return tuple(line for line in lines if line)


class _Lister:
    """Lists the images below one folder, and notes what is left out."""

    def __init__(self, root: str, *, follow_links: bool, faults: list[str] | None) -> None:
        """Begins with nothing.

        Args:
          root: the folder of the data set.
          follow_links: whether links may lead out of it.
          faults: the list that gets a line for each class that is at fault; None: it is an error.
        """
        self.left_out = LeftOut()
        self._real_root = root if storage.is_remote(root) else os.path.realpath(root)
        self._follow_links = follow_links
        self._faults = faults
        self._suffixes = encoded.image_suffixes()

    def check_link(self, path: str) -> None:
        """Raises UserError for a link that leaves the data set's folder, unless that is allowed."""
        if self._follow_links or storage.is_remote(path) or not os.path.islink(path):
            return
        target = os.path.realpath(path)
        if os.path.commonpath((target, self._real_root)) != self._real_root:
            raise UserError(
                f"{path}: a link out of the data set's folder, to {target}. Put the files "
                "themselves there, remove it, or allow such links with --follow_links"
            )

    def list_classes(self, folder: str) -> dict[str, list[str]]:
        """Lists the image files of each class; classes and files are sorted by name.

        Args:
          folder: a folder with one folder per class.

        Raises:
          UserError: a link leads out, or a class is empty.
        """
        classes: dict[str, list[str]] = {}
        for entry in storage.list_entries(folder, file_suffixes=self._suffixes):
            path = os.path.join(folder, entry.name)
            if not entry.is_folder:
                is_image = self._is_image(entry.name)
                self.left_out.add(path, "beside the folders of the classes" if is_image else None)
            elif is_hidden(entry.name):
                self.left_out.add_folder(
                    path, "in hidden folders and those of systems", is_link=entry.is_link
                )
            else:
                classes[entry.name] = self._list_class(path, is_link=entry.is_link)
        return classes

    def _is_image(self, name: str) -> bool:
        return name.lower().endswith(self._suffixes) and not is_hidden(name)

    def _list_class(self, folder: str, *, is_link: bool) -> list[str]:
        try:
            if is_link:
                self.check_link(folder)
            return self._list_files(folder)
        except (UserError, OSError) as error:
            if self._faults is None:
                raise
            reason = error.strerror if isinstance(error, OSError) else None
            self._faults.append(f"{folder}: cannot be listed ({reason})" if reason else str(error))
            return []

    def _list_files(self, folder: str) -> list[str]:
        files, others = [], []
        has_folders = False
        for entry in storage.list_entries(folder, file_suffixes=self._suffixes):
            path = os.path.join(folder, entry.name)
            if entry.is_folder:
                has_folders = True
                self.left_out.add_folder(path, "in folders within a class", is_link=entry.is_link)
            elif self._is_image(entry.name):
                if entry.is_link:
                    self.check_link(path)
                files.append(path)
            else:
                others.append(path)
                self.left_out.add(path)
        if not files:
            # A run makes the folder of its --logdir before it lists its data.
            advice = "Remove the folder, or put its images there; a --logdir belongs elsewhere."
            if has_folders:
                advice = (
                    "Its own folders are not read: put its images there, or, if these folders are "
                    f"the classes, give {folder} as the folder of the data."
                )
            first = describe_first(others)
            advice = f"{first}." if first else advice
            raise UserError(
                f"{folder}: a class without images (names end in {', '.join(self._suffixes)}). "
                f"{advice}"
            )
        return files


def _find_splits(folder: str) -> dict[str, str]:
    """Returns the folder of each split; empty where the classes lie in `folder` itself.

    A folder with the name of a split is one where it has folders in it, of its classes. One with
    images in it is a class that is called so.

    Raises:
      UserError: `train` is no folder, there are two folders of one split, or one that may be a
        class.
    """
    entries = {entry.name: entry for entry in storage.list_entries(folder)}
    found: dict[str, str] = {}
    for split, names in SPLITS.items():
        places = [name for name in names if name in entries and _has_folders(folder, name)]
        if len(places) > 1:
            raise UserError(
                f"{folder}: has {' and '.join(places)}, which are the same split. Remove one."
            )
        if places:
            _check_splits_folder(folder, places[0], entries.values())
            found[split] = os.path.join(folder, places[0])
    train = entries.get("train")
    if train is not None and not train.is_folder:
        what = "a link to nothing" if train.is_link else "a file"
        raise UserError(f"{folder}/train: must be a folder with one folder per class, is {what}")
    return found


def _list_visible(path: str) -> list[storage.Entry]:
    entries = storage.list_entries(path, file_suffixes=encoded.image_suffixes())
    return [entry for entry in entries if not is_hidden(entry.name)]


def _has_folders(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    return storage.is_folder(path) and any(entry.is_folder for entry in _list_visible(path))


def _has_images(path: str) -> bool:
    suffixes = encoded.image_suffixes()
    try:
        entries = _list_visible(path)
    except OSError:  # It is left out, and told.
        return False
    return any(not e.is_folder and e.name.lower().endswith(suffixes) for e in entries)


def _check_splits_folder(folder: str, name: str, beside: Iterable[storage.Entry]) -> None:
    """Raises UserError for a folder with images and folders in it, beside more that are classes."""
    if not _has_images(os.path.join(folder, name)):
        return
    classes = [
        entry.name
        for entry in beside
        if entry.is_folder and entry.name.lower() not in _PARTS and not is_hidden(entry.name)
    ]
    classes = [other for other in classes if _has_images(os.path.join(folder, other))]
    inner = [entry for entry in _list_visible(os.path.join(folder, name)) if entry.is_folder]
    if len(classes) > len(inner):
        raise UserError(
            f"{folder}/{name}: has images, as the class {classes[0]} beside it, and folders, as a "
            "folder of classes. Move its images or its folders elsewhere"
        )


def list_images(
    folder: str,
    validation_fraction: float,
    *,
    follow_links: bool = False,
    faults: list[str] | None = None,
) -> Images:
    """Lists the images in a folder.

    Args:
      folder: the folder of the data set.
      validation_fraction: the share of every class to hold out, where the folder has no splits;
        1: all images are validation data.
      follow_links: whether links may lead out of the folder.
      faults: the list that gets a line for each class that cannot be listed or is empty; None: that
        is an error.

    Raises:
      UserError: it holds no images, its splits do not agree, or --validation_fraction contradicts.
    """
    lister = _Lister(folder, follow_links=follow_links, faults=faults)
    places = _find_splits(folder)
    if not places:
        classes = lister.list_classes(folder)
        if classes.keys() and {name.lower() for name in classes} <= _PARTS:
            # Such as train and test, each with images of all classes.
            for path in itertools.chain.from_iterable(classes.values()):
                lister.left_out.add(path, "without a folder of their class")
            classes = {}
        images = _hold_out(classes, folder, validation_fraction, lister.left_out)
    elif validation_fraction:
        raise UserError(
            f"--validation_fraction: must not be given where {folder} has a folder "
            f"{os.path.basename(next(iter(places.values())))}, got {validation_fraction:g}"
        )
    else:
        images = Images(_list_splits(folder, places, lister), lister.left_out)
    if not any(images.splits.values()) and not faults:
        left_out = images.left_out.describe()
        raise UserError(
            f"{folder}: has no images in one folder per class "
            f"(train/<class>/*.jpg, or <class>/*.jpg){f'; {left_out}' if left_out else ''}"
        )
    return images


def _list_splits(
    folder: str, places: Mapping[str, str], lister: _Lister
) -> dict[str, dict[str, list[str]]]:
    """Lists the images of each split, and leaves out what else is in the folder."""
    splits: dict[str, dict[str, list[str]]] = {}
    for split, path in places.items():
        lister.check_link(path)
        splits[split] = lister.list_classes(path)
    for entry in storage.list_entries(folder):
        path = os.path.join(folder, entry.name)
        if entry.is_folder and path not in places.values():
            lister.left_out.add_folder(path, f"in {entry.name}/", is_link=entry.is_link)
        elif not entry.is_folder:
            lister.left_out.add(path)
    if "train" not in splits:
        return splits
    classes = splits["train"]
    for name in splits.get("validation", {}):
        if name not in classes:
            raise UserError(
                f"{places['validation']}/{name}: a class that {folder}/train does not have"
            )
    return {
        split: {name: found.get(name, []) for name in classes} for split, found in splits.items()
    }


def _hold_out(
    classes: dict[str, list[str]], folder: str, fraction: float, left_out: LeftOut
) -> Images:
    """Divides the files of each class into train and, where `fraction` is above 0, validation."""
    if not fraction or not classes:
        return Images({"train": classes}, left_out)
    if fraction == 1:
        return Images({"validation": classes}, left_out)
    counts = split_counts([len(paths) for paths in classes.values()], fraction)
    if not any(counts):
        raise UserError(
            f"--validation_fraction: no class in {folder} has an image to spare, got {fraction:g}"
        )
    chosen = {
        name: held_out(paths, folder, count)
        for (name, paths), count in zip(classes.items(), counts, strict=True)
    }
    splits = {
        "train": {n: [p for p in paths if p not in chosen[n]] for n, paths in classes.items()},
        "validation": {n: [p for p in paths if p in chosen[n]] for n, paths in classes.items()},
    }
    return Images(splits, left_out, counts.count(0))


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
    exact; but none gives its last image.
    """
    sizes = np.array(class_sizes)
    shares = sizes * fraction
    counts = np.minimum(np.floor(shares).astype(int), sizes - 1)
    lacking = math.ceil(sum(class_sizes) * fraction) - int(counts.sum())
    order = np.argsort(counts - shares, kind="stable")
    spare = [number for number in order if counts[number] < sizes[number] - 1]
    counts[spare[:lacking]] += 1
    return counts.tolist()
