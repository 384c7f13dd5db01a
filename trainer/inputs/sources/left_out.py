"""Files of a data set's folder that are not read, so that none is left out without a word."""

import contextlib
import os
from collections.abc import Iterable, Iterator

from trainer.inputs.images import encoded
from trainer.inputs.sources import storage

# Folders that systems and their tools make wherever they go.
_OF_SYSTEMS = (
    "#recycle",
    "$RECYCLE.BIN",
    "@eaDir",
    "System Volume Information",
    "__MACOSX",
    "lost+found",
)
_BEGINNING_BYTES = 256
_LONGEST_SUFFIX = 8  # Characters with the dot: what follows a dot may be part of a name.


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is a system's or a tool's, by its name."""
    return name.startswith(".") or name in _OF_SYSTEMS


class LeftOut:
    """A count of files that are not read, by reason."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, str] = {}

    @property
    def count(self) -> int:
        """The number of files in all."""
        return sum(self._counts.values())

    def add(self, path: str, reason: str | None = None) -> None:
        """Adds a file.

        Args:
          path: the path of the file.
          reason: where it lies, as the end of "3 files ...". None: it is hidden, or of another
            format.
        """
        if reason is None:
            reason = _describe_format(path)
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._firsts.setdefault(reason, path)

    def add_folder(self, path: str, reason: str, *, is_link: bool = False) -> None:
        """Adds every file below a folder; one that is a link, or cannot be listed, as one file."""
        for file in [path] if is_link else _walk(path):
            self.add(file, reason)

    def describe(self) -> str | None:
        """Returns one line that names every reason, with the first file; None: there is no file."""
        if not self._counts:
            return None
        parts = [
            f"{count} {reason} ({self._firsts[reason]}{', ...' if count > 1 else ''})"
            for reason, count in sorted(self._counts.items(), key=lambda item: -item[1])
        ]
        verb = "files are" if self.count > 1 else "file is"
        return f"{self.count} {verb} left out: {'; '.join(parts)}"


def describe_first(paths: Iterable[str]) -> str | None:
    """Returns what the first of these files is, where it is an image after all; else None.

    For a folder of which no file is read, such as one of a telephone's pictures.
    """
    path = next((path for path in paths if not is_hidden(os.path.basename(path))), None)
    # To open a pipe may take for ever.
    if path is None or not (storage.is_remote(path) or os.path.isfile(path)):
        return None
    with contextlib.suppress(OSError):
        told = encoded.describe_beginning(storage.read_beginning(path, _BEGINNING_BYTES))
        return told and f"{os.path.basename(path)} is {told}"
    return None


def _describe_format(path: str) -> str:
    if is_hidden(os.path.basename(path)):
        return "hidden"
    suffix = os.path.splitext(path)[1].lower()
    is_known = 1 < len(suffix) <= _LONGEST_SUFFIX
    return f"named {'*' + suffix if is_known else 'without a suffix'}"


def _walk(folder: str) -> Iterator[str]:
    """Yields the path of every file below a folder.

    Links to folders count as files, and so do folders that cannot be listed, such as a file
    system's own `lost+found` or one that has just been removed.
    """
    try:
        entries = storage.list_entries(folder, file_suffixes=encoded.image_suffixes())
    except OSError:
        yield folder
        return
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if entry.is_folder and not entry.is_link:
            yield from _walk(path)
        else:
            yield path
