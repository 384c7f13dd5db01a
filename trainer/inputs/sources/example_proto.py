"""A reader of the part of `tf.train.Example` that images need, without TensorFlow or copies.

An Example is a map from names to lists of bytes, floats or integers. Nested messages are
`Example{1: Features}`, `Features{1: entry}`, `entry{1: name, 2: Feature}`,
`Feature{1: BytesList, 2: FloatList, 3: Int64List}`, and each list's field 1 holds its values.
A walk over the bytes finds a label without touching the pages of a memory map that hold the
image, says where the image lies, and lets programs start without importing TensorFlow.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Span(NamedTuple):
    """A message within a buffer, from byte `start` to the byte before `end`."""

    start: int
    end: int


def _read_varint(buffer: memoryview, position: int) -> tuple[int, int]:
    """Returns the integer at `position` and the position behind it."""
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _fields(buffer: memoryview, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Yields (field number, value) of one message; a value is an integer or a span of bytes."""
    position, end = span
    while position < end:
        tag, position = _read_varint(buffer, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = _read_varint(buffer, position)
            yield tag >> 3, value
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(buffer, position)
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


def find_features(example: memoryview, names: Collection[str]) -> dict[str, Span]:
    """Finds the Features with some names in a serialized Example; absent ones are left out.

    Raises:
      ValueError: the bytes are not an Example.
    """
    found = {}
    wanted = {name.encode(): name for name in names}
    nothing = Span(0, 0)
    try:
        for features in _messages(example, Span(0, len(example)), 1):
            for entry in _messages(example, features, 1):
                start, end = next(_messages(example, entry, 1), nothing)
                name = wanted.get(bytes(example[start:end]))
                if name is not None:
                    found[name] = next(_messages(example, entry, 2), nothing)
    except IndexError as error:
        raise ValueError("it ends within an integer") from error
    return found


def find_bytes(example: memoryview, feature: Span) -> Span:
    """Finds the first value of a feature of bytes.

    Raises:
      ValueError: it holds no bytes.
    """
    for values in _messages(example, feature, 1):
        for value in _messages(example, values, 1):
            return value
    raise ValueError("no bytes value")


def read_int64(example: memoryview, feature: Span) -> int:
    """Reads the first value of a feature of integers.

    Raises:
      ValueError: it holds no integer.
    """
    for values in _messages(example, feature, 3):
        for number, value in _fields(example, values):
            if number == 1:
                # Packed, as today's writers have it, or a plain integer, as some earlier ones had.
                unsigned = value if isinstance(value, int) else _read_varint(example, value[0])[0]
                return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
    raise ValueError("no integer value")


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
