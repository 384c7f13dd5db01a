"""A reader of the part of `tf.train.Example` that images need, without TensorFlow or copies.

An Example is a map from names to lists of bytes, floats or integers. Nested messages are
`Example{1: Features}`, `Features{1: entry}`, `entry{1: name, 2: Feature}`,
`Feature{1: BytesList, 2: FloatList, 3: Int64List}`, and each list's field 1 holds its values.
A walk over the bytes finds a label without touching the pages of a memory map that hold the
image, says where the image lies, and lets programs start without importing TensorFlow.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# What a Feature's lists hold, by the number of their field.
_KINDS = {1: "bytes", 2: "float", 3: "integer"}


class Span(NamedTuple):
    """A message within a buffer, from byte `start` to the byte before `end`."""

    start: int
    end: int


def _read_varint(buffer: memoryview, position: int, end: int) -> tuple[int, int]:
    """Returns the integer at `position`, of a message up to `end`, and the position behind it."""
    value = shift = 0
    while True:
        if position >= end:
            raise ValueError("it ends within an integer")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if value >> 64 or (byte >= 0x80 and shift > 63):
            raise ValueError("an integer of more than 64 bits")
        if byte < 0x80:
            return value, position


def _fields(buffer: memoryview, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Yields (field number, value) of one message; a value is an integer or a span of bytes."""
    position, end = span
    while position < end:
        tag, position = _read_varint(buffer, position, end)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = _read_varint(buffer, position, end)
            yield tag >> 3, value
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(buffer, position, end)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type}")
        if length > end - position:
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, Span(position, position + length)
        position += length


def _messages(buffer: memoryview, span: Span, number: int) -> Iterator[Span]:
    """Yields the messages in one field of a message."""
    for field, value in _fields(buffer, span):
        if field == number:
            if isinstance(value, int):
                raise ValueError("an integer where a message belongs")
            yield value


def _entries(example: memoryview) -> Iterator[tuple[bytes, Span]]:
    """Yields the name of every feature of an Example, and the Feature."""
    nothing = Span(0, 0)
    for features in _messages(example, Span(0, len(example)), 1):
        for entry in _messages(example, features, 1):
            start, end = next(_messages(example, entry, 1), nothing)
            yield bytes(example[start:end]), next(_messages(example, entry, 2), nothing)


def find_features(example: memoryview, names: Collection[str]) -> dict[str, Span]:
    """Finds the Features with some names in a serialized Example; absent ones are left out.

    Raises:
      ValueError: the bytes are not an Example.
    """
    wanted = {name.encode(): name for name in names}
    return {wanted[name]: feature for name, feature in _entries(example) if name in wanted}


def list_features(example: memoryview) -> list[str]:
    """Returns the names of all features of a serialized Example.

    Raises:
      ValueError: the bytes are not an Example.
    """
    return [name.decode(errors="replace") for name, _ in _entries(example)]


def _only(values: Sequence[T], kind: str, feature: Span, example: memoryview) -> T:
    """Returns the only one of a feature's values; raises ValueError where there are others."""
    if len(values) == 1:
        return values[0]
    if values:
        raise ValueError(f"{len(values)} {kind} values, where one belongs")
    kinds = {number: name for number, name in _KINDS.items() if name != kind}
    other = next((kinds[n] for n, _ in _fields(example, feature) if n in kinds), None)
    raise ValueError(f"{other} values, where {kind} ones belong" if other else f"no {kind} value")


def find_bytes(example: memoryview, feature: Span) -> Span:
    """Finds the value of a feature of bytes.

    Raises:
      ValueError: it has none, or several.
    """
    lists = _messages(example, feature, 1)
    found = [value for values in lists for value in _messages(example, values, 1)]
    return _only(found, "bytes", feature, example)


def read_int64(example: memoryview, feature: Span) -> int:
    """Reads the value of a feature of integers.

    Raises:
      ValueError: it has none, or several.
    """
    found: list[int] = []
    for values in _messages(example, feature, 3):
        for number, value in _fields(example, values):
            if number != 1:
                continue
            if isinstance(value, int):  # As some earlier writers had it; today's pack them.
                found.append(value)
            else:
                found += _packed(example, value)
    unsigned = _only(found, "integer", feature, example)
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned


def _packed(buffer: memoryview, span: Span) -> Iterator[int]:
    """Yields the integers of a packed list."""
    position = span.start
    while position < span.end:
        value, position = _read_varint(buffer, position, span.end)
        yield value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def serialize(features: Mapping[str, bytes | int]) -> bytes:
    """Returns a serialized Example with one value, bytes or an integer from 0, per feature."""
    entries = []
    for name, value in features.items():
        if isinstance(value, int):
            feature = _message(3, _message(1, _varint(value)))
        else:
            feature = _message(1, _message(1, value))
        entries.append(_message(1, _message(1, name.encode()) + _message(2, feature)))
    return _message(1, b"".join(entries))
