"""The TFRecord file format: uint64 length, its CRC, the data, its CRC; checked, byte by byte.

TensorFlow's own reader knows no record but the next one, and `ignore_errors` lets the rest of a
damaged shard vanish. Here a record is read by its offset and every fault has a file and an offset.
"""

import struct
from collections.abc import Iterator

import google_crc32c

from trainer.errors import UserError

HEADER_BYTES = 12
FOOTER_BYTES = 4
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


class ShardError(UserError):
    """A damaged shard. The message names file, offset and fault, as `fault` alone does."""

    def __init__(self, path: str, offset: int, fault: str) -> None:
        self.fault = f"{path}: byte {offset}: {fault}"
        super().__init__(
            f"{self.fault}. Restore the file from where it came from; "
            "scripts/verify_dataset.py lists every fault."
        )


def _masked_crc(data: bytes | memoryview) -> int:
    """CRC-32C, rotated and shifted as the format wants it."""
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record with its length and checksums around it."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (
            length,
            _FOOTER.pack(_masked_crc(length)),
            data,
            _FOOTER.pack(_masked_crc(data)),
        )
    )


def _length(buffer: memoryview, position: int, path: str, offset: int) -> int:
    """The checked length, bytes, of the data of the record whose header is at `position`."""
    if len(buffer) - position < HEADER_BYTES:
        raise ShardError(path, offset, "the file ends within a record's header")
    length, crc = _HEADER.unpack_from(buffer, position)
    if crc != _masked_crc(buffer[position : position + 8]):
        raise ShardError(path, offset, "the checksum of a record's length does not match")
    return length


def scan(buffer: memoryview, path: str) -> Iterator[tuple[int, memoryview]]:
    """Yields (offset, data) of every record of a whole shard, without reading the data.

    Raises:
      ShardError: the shard is damaged or ends within a record.
    """
    offset = 0
    while offset < len(buffer):
        length = _length(buffer, offset, path, offset)
        start = offset + HEADER_BYTES
        if length > len(buffer) - start - FOOTER_BYTES:
            raise ShardError(path, offset, "the file ends within a record")
        yield offset, buffer[start : start + length]
        offset = start + length + FOOTER_BYTES


def verify(record: bytes, path: str, offset: int) -> None:
    """Verifies the checksums of one whole record, header to footer.

    Args:
      record: the bytes from the record's offset to the next record's.
      path, offset: where they come from, for the message.

    Raises:
      ShardError: they are not what was written.
    """
    view = memoryview(record)
    length = _length(view, 0, path, offset)
    if len(record) != HEADER_BYTES + length + FOOTER_BYTES:
        raise ShardError(path, offset, "the record is not as long as it was when it was indexed")
    (crc,) = _FOOTER.unpack_from(record, len(record) - FOOTER_BYTES)
    if crc != _masked_crc(view[HEADER_BYTES:-FOOTER_BYTES]):
        raise ShardError(path, offset, "the checksum of a record's data does not match")
