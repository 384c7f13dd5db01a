"""Finds the images that a command line names: files, folders, lists of names."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from trainer.errors import UserError, status_of
from trainer.inputs.images import encoded
from trainer.inputs.sources.left_out import LeftOut, describe_first, is_hidden

_LIST = "@"
_STANDARD_INPUT = "-"
# With which editors of Windows begin a file in UTF-8.
_BYTE_ORDER_MARK = "\ufeff"


def find_files(
    given: Sequence[str], standard_input: TextIO | None
) -> tuple[list[str], tuple[str, ...]]:
    """Finds the files that are named.

    Args:
      given: each a file; a folder, of which all images are taken, those of folders in it too, in
        order of their names; `@FILE`, a list with a name in each line; or `-`, such a list from the
        standard input. `./-` and `./@name` are files.
      standard_input: the standard input; None: it is closed.

    Returns:
      the files, in the order in which they are named, and lines about what of the folders is left
      out.

    Raises:
      UserError: a list can't be read, a folder can't be, or has no images, or no file is named.
    """
    left_out = LeftOut()
    found: list[str] = []
    for name in _expand(given, standard_input):
        if not os.path.isdir(name):
            found.append(name)
            continue
        images, others = _list_folder(name, left_out)
        if not images:
            first = describe_first(others)
            raise UserError(
                f"{name}: has no images (names end in {', '.join(encoded.image_suffixes())})"
                f"{f'. {first}' if first else ''}"
            )
        for path in others:
            left_out.add(path)
        found += images
    if not found:
        raise UserError(f"{' '.join(given)}: names no file")
    line = left_out.describe()
    return found, () if line is None else (line,)


def _expand(given: Iterable[str], standard_input: TextIO | None) -> Iterator[str]:
    """Yields names, those of lists in the place of the list."""
    for name in given:
        try:
            if name == _STANDARD_INPUT:
                if standard_input is None:
                    raise UserError(f"{name}: the standard input is closed")
                if isinstance(standard_input, io.TextIOWrapper):
                    standard_input.reconfigure(errors="surrogateescape")  # Names may be no UTF-8.
                yield from _names_in(standard_input)
            elif name.startswith(_LIST):
                path = name.removeprefix(_LIST)
                with open(path, encoding="utf-8", errors="surrogateescape") as file:
                    yield from _names_in(file)
            else:
                yield name
        except OSError as error:
            raise UserError(
                f"{name}: the list cannot be read ({error.strerror})", status=status_of(error)
            ) from None


def _names_in(file: TextIO) -> Iterator[str]:
    """Yields the lines of a list that are not empty, without their ends and without its mark."""
    for number, line in enumerate(file):
        name = line.rstrip("\r\n")
        if number == 0:
            name = name.removeprefix(_BYTE_ORDER_MARK)
        if "\0" in name:  # Of `find -print0`, or of UTF-16.
            raise UserError("the list of files has NUL bytes; it must have a name in each line")
        if name:
            yield name


def _list_folder(folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Returns the images and the other files below a folder.

    Links to folders are not followed, lest there be a loop; these and hidden ones are left out.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror})", status=status_of(error)
        )

    suffixes = encoded.image_suffixes()
    images: list[str] = []
    others: list[str] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        within = {name: os.path.join(place, name) for name in sorted(folders)}
        for name, path in within.items():
            if is_hidden(name):
                left_out.add_folder(
                    path, "in hidden folders and those of systems", is_link=os.path.islink(path)
                )
            elif os.path.islink(path):
                left_out.add_folder(path, "in folders that are links", is_link=True)
        folders[:] = (name for name in within if not is_hidden(name))
        for name in sorted(names):
            path = str(Path(place) / name)
            is_image = name.lower().endswith(suffixes) and not is_hidden(name)
            (images if is_image else others).append(path)
    return images, others
