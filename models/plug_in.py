"""Finds the function, or the file, of code that is named as `package.module:function`."""

import importlib
import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How the files of frames begin that do not tell where an import failed.
_IMPORT_SYSTEM = ("<frozen importlib", str(Path(importlib.__file__).parent), __file__)


class PlugInError(ValueError):
    """Code that cannot be had. The message is one line.

    Attributes:
      reason: the message without the name of the module, where that is more than the reason.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message


class PlugInNameError(PlugInError):
    """A name that is not of the form `package.module:function`."""


def split(name: str) -> tuple[str, str] | None:
    """Returns module and function; None where the name has another form, or a relative module."""
    module, _, function = name.partition(":")
    return (module, function) if function and all(module.split(".")) else None


def load(name: str) -> Callable[..., Any]:
    """Imports the function that a name of the form `package.module:function` names.

    Raises:
      PlugInNameError: the name has another form.
      PlugInError: the module cannot be imported, or has no such function.
    """
    parts = split(name)
    if parts is None:
        raise PlugInNameError(f"must be package.module:function, got {name!r}")
    module_name, function_name = parts
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # The module's own code may raise anything.
        reason = _describe(error)
        raise PlugInError(f"cannot import module {module_name} ({reason})", reason) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise PlugInError(f"module {module_name} has no function {function_name}")
    return function


def find_file(module: str) -> Path | None:
    """Returns the file of a module, or None where there is no such module, or it has no file.

    Raises:
      PlugInError: a package that the module is in fails while it is imported.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit) as error:  # Of the package's own code, or: there is none.
        if isinstance(error, ImportError | ValueError) and _find_place(error) is None:
            return None
        reason = _describe(error)
        raise PlugInError(f"cannot import module {module} ({reason})", reason) from error
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _find_place(error: BaseException) -> str | None:
    """Returns file and line where an import failed; None where there is nothing to import."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_IMPORT_SYSTEM)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _describe(error: BaseException) -> str:
    """Returns one line that says what an import raised and, where code did, in which file."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    if not isinstance(error, ImportError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _find_place(error)
    return text if place is None else f"{text}, at {place}"
