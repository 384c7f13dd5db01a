"""Trains, evaluates, benchmarks and exports tf-slim image classifiers, on one device or many."""

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from pathlib import Path


class _OwnPackages:
    """Finds this program's other packages beside this one, whatever the current folder holds.

    Python looks in the current folder first, where people have folders and files of these names.
    """

    _NAMES = ("flags", "models")
    _PLACE = str(Path(__file__).parent.parent)

    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns where a package is; None for those of others."""
        if path is not None or fullname not in cls._NAMES:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [cls._PLACE], target)


sys.meta_path.insert(0, _OwnPackages)
