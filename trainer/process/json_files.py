"""Reads the JSON files of this program, whatever they hold, and says what in them is wrong."""

import dataclasses
import json
import math
import os
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

T = TypeVar("T")

_MOST = 2**63  # What numbers of steps, bytes and examples are below.
_LARGEST = sys.float_info.max


class FormatError(ValueError):
    """A file, or a part of it, that is not what it must be. The message is one line without it."""


def read(path: str | os.PathLike[str]) -> Any:
    """Returns what a file of JSON holds.

    Raises:
      FormatError: it is no JSON in UTF-8, or nested too deeply.
      OSError: it can't be read.
    """
    return parse(Path(path).read_bytes())


def parse(content: bytes | str) -> Any:
    """Returns what JSON says; see `read`."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise FormatError(f"it is not UTF-8 from byte {error.start} on") from error
    except RecursionError as error:
        raise FormatError("it is nested too deeply") from error
    except ValueError as error:  # Also for a number of too many digits.
        raise FormatError(" ".join(str(error).split())) from error


def build(kind: type[T], value: Any, place: str = "") -> T:
    """Builds an object of what JSON says.

    Args:
      kind: a dataclass, a named tuple, or any type that their fields may have: int (within 64
        bits), float (finite), str, bool, a union, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`
        or `Any`. An object has the fields of its kind that have no default, and no others.
      value: what JSON says.
      place: the name of the part that it is, for the message.

    Raises:
      FormatError: something has another type, is missing, or does not belong there.
    """
    return typing.cast("T", _build(kind, value, place))


def _build(kind: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _build_one_of(arguments, value, place)
    if origin is tuple:
        return _build_tuple(arguments, value, place)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, dict), value, "an object", place)
        return {name: _build(arguments[1], v, _join(place, name)) for name, v in value.items()}
    if kind is type(None):
        _check(value is None, value, "null", place)
        return None
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _check(is_number and abs(value) < math.inf, value, "a number", place)
        return float(min(max(value, -_LARGEST), _LARGEST))
    if kind is int:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        _check(is_whole and -_MOST <= value < _MOST, value, "a whole number", place)
        return value
    if kind in (str, bool):
        _check(isinstance(value, kind), value, "a text" if kind is str else "true or false", place)
        return value
    return _build_object(kind, value, place)


def _build_one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _build(kind, value, place)
        except FormatError as error:
            errors.append(error)
    raise errors[0]


def _build_tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    _check(isinstance(value, list), value, "a list", place)
    if kinds[1:] == (Ellipsis,):
        kinds = kinds[:1] * len(value)
    _check(len(kinds) == len(value), value, f"a list of {len(kinds)}", place)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_build(kind, each, f"{place}[{number}]") for number, (kind, each) in pairs)


def _build_object(kind: Any, value: Any, place: str) -> Any:
    """Builds a dataclass or a named tuple."""
    _check(isinstance(value, dict), value, "an object", place)
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        optional = {f.name for f in fields if f.default is not dataclasses.MISSING}
    else:
        optional = set(kind._field_defaults)
    for name in value:
        if name not in hints:
            raise FormatError(f"{_join(place, name)} is unknown")
    for name in hints:
        if name not in value and name not in optional:
            raise FormatError(f"{_join(place, name)} is missing")
    return kind(**{name: _build(hints[name], v, _join(place, name)) for name, v in value.items()})


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else str(name)


def _check(is_right: bool, value: Any, wanted: str, place: str) -> None:
    if not is_right:
        shown = type(value).__name__ if isinstance(value, dict | list | str) else repr(value)[:20]
        names = {"dict": "an object", "list": "a list", "str": "a text"}
        raise FormatError(f"{place or 'it'} is {names.get(shown, shown)}, not {wanted}")
