"""Gives back the pages of loaded libraries that only the start of the process has needed.

Linking TensorFlow and registering its operations reads 340 MiB of libraries, of which steps need 50
to 60. Nothing here needs TensorFlow.
"""

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The kernel's asm-generic/mman-common.h.
_MADV_DONTNEED = 4
_MAPPINGS = Path("/proc/self/smaps")
_LIBRARY = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[-x]p .*\.so(\.\d+)*$")
# Fields of a mapping that are 0 where every page of it is the file's: none was changed, by the
# linker or a debugger, and is in memory, or swapped out; nor is any locked in memory. Where the
# kernel does not tell one of them, the mapping is left alone.
_OF_CHANGED = ("Anonymous:", "Swap:", "Locked:")


class _Mapping(NamedTuple):
    """A part of a library in this process's memory: addresses."""

    begin: int
    end: int


def _find_unchanged() -> Iterator[_Mapping]:
    """Yields parts of libraries that nobody writes to and that are as the file has them.

    Source of the fields: proc_pid_smaps(5).
    """
    mapping, unchanged = None, 0
    for line in _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(" ")
        if not name.endswith(":"):  # A mapping begins; its fields follow.
            found = _LIBRARY.match(line)
            mapping = _Mapping(int(found[1], 16), int(found[2], 16)) if found else None
            unchanged = 0
        elif mapping is not None and name in _OF_CHANGED and value.split() == ["0", "kB"]:
            unchanged += 1
            if unchanged == len(_OF_CHANGED):
                yield mapping


def give_back() -> None:
    """Takes the libraries' unchanged pages out of this process's resident memory.

    Their contents stay in the system's cache of files, where other programs can have the room: a
    page that is used again is mapped again from there, or read again where the system has given
    the room away. Does nothing where there is no /proc. No thread may unload a library meanwhile.
    """
    with contextlib.suppress(OSError):
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for mapping in list(_find_unchanged()):
            # What can't be given back stays: it is as right there.
            advise(mapping.begin, mapping.end - mapping.begin, _MADV_DONTNEED)
