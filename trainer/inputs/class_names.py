"""The names of classes, which tell the labels of a data set from those of a trained network."""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import UserError
from trainer.inputs.source import Source, Split, name_of

_SHOWN = 5
# More are taken for keys, unless there are so many examples. The largest ImageNet has 21,841.
_MOST_CLASSES = 1_000_000


def name_classes(known: Sequence[str] | None, num_classes: int) -> list[str]:
    """Returns a name for every class of a network: its number, where it has no other."""
    names = list(known or ())[:num_classes]
    return names + [str(number) for number in range(len(names), num_classes)]


def describe_names(known: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """Returns a line where the classes of a network and their names are not as many."""
    if known is None or len(known) == num_classes:
        return ()
    what = "numbers for the others" if len(known) < num_classes else "the first ones"
    return (f"the network has {num_classes} classes and {len(known)} names: taken are {what}",)


def count_classes(source: Source) -> int:
    """Returns how many classes there are at least, by the labels.

    Raises:
      UserError: there would be so many that labels must be something else, such as keys.
    """
    count = 1
    for split in (source.train, source.validation):
        if split is None or not len(split.labels):
            continue
        largest = int(split.labels.max())
        if largest >= max(_MOST_CLASSES, 10 * len(split.labels)):
            raise UserError(
                f"{split.where(int(np.argmax(split.labels)))}: its label is {largest}, of "
                f"{len(split.labels)} examples: labels must be the numbers of classes, from 0 on"
            )
        count = max(count, largest + 1)
    return count


class _Relabelled:
    """A split whose labels are those of a network."""

    def __init__(self, split: Split, labels: npt.NDArray[Any]) -> None:
        self.labels = labels
        self.read = split.read
        self.where = split.where
        self.short_name = functools.partial(name_of, split)


def by_name(source: Source, names: Sequence[str]) -> Source:
    """Returns a data set whose labels are the places of its classes' names among a network's.

    Where the data set's own classes have no names, its labels stay what they are.

    Args:
      source: the data set; its labels are 0 to its number of classes - 1.
      names: the names of the network's classes, by label.

    Raises:
      UserError: the data set has a class that the network does not have, or names that do not tell
        classes apart.
    """
    ours = source.class_names
    if ours is None or tuple(ours) == tuple(names[: len(ours)]):
        return source._replace(class_names=tuple(names))
    for side, of_side in (("the data", ours), ("the network", names)):
        counts = collections.Counter(of_side)
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise UserError(
                f"--data_dir: its classes are not the network's, and {repeated[0]!r} is the name "
                f"of several classes of {side}, so that labels cannot be found by name. Give them "
                "the network's order"
            )
    places = {name: label for label, name in enumerate(names)}
    unknown = [name for name in ours if name not in places]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"--data_dir: has the class {unknown[0]!r}{more}, which is none of the network's "
            f"{len(names)} classes: {_shorten(names)}"
        )
    labels = np.array([places[name] for name in ours], np.int64)

    def relabel(split: Split | None) -> Split | None:
        return None if split is None else _Relabelled(split, labels[split.labels])

    return source._replace(
        train=relabel(source.train),
        validation=relabel(source.validation),
        num_classes=len(names),
        class_names=tuple(names),
    )


def first_difference(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Returns in words where two lists of class names differ first; None where they do not."""
    for label, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            return f"class {label} was {old!r} and is {new!r}"
    if len(before) != len(now):
        return f"there were {len(before)} classes and are {len(now)}"
    return None


def describe_apart(before: Sequence[str], now: Sequence[str]) -> str:
    """Returns in words, after a bracket, the names that only one of two lists has; may be empty."""
    only = (
        ("the run alone has", [name for name in before if name not in set(now)]),
        ("the data alone have", [name for name in now if name not in set(before)]),
    )
    told = "; ".join(f"{who} {_shorten(names)}" for who, names in only if names)
    return f" ({told})" if told and before and now else ""


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (", ..." if len(names) > _SHOWN else "")
