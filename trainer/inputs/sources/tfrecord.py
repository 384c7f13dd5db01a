"""The TFRecord file format: uint64 length, its CRC, the data, its CRC; all of it is checked.

TensorFlow's reader can only read the next record, and with `ignore_errors` the rest of a damaged
shard is lost without a word. Here a record is read by its offset, and every fault is reported with
file and offset.
"""

import struct
from collections.abc import Iterator

import google_crc32c

from trainer.errors import UserError

HEADER_BYTES = 12
FOOTER_BYTES = 4
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


_RESTORE = "Restore the file from where it came from; scripts/verify_dataset.py lists every fault."
# The first bytes of what TFRecordWriter makes with its options GZIP and ZLIB.
_COMPRESSED = (b"\x1f\x8b", b"x\x01", b"x^", b"x\x9c", b"x\xda")


class ShardError(UserError):
    """A shard that is damaged, or is none that can be read.

    Attributes:
      fault: file, offset and fault: the message without what to do.
    """

    def __init__(self, path: str, offset: int, fault: str, *, remedy: str = _RESTORE) -> None:
        self.fault = f"{path}: byte {offset}: {fault}"
        super().__init__(f"{self.fault}. {remedy}")


def _masked_crc(data: bytes | memoryview) -> int:
    """Returns the CRC-32C of some data, rotated and offset as the format defines it."""
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Returns a record: some data with its length and checksums."""
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
    """Reads and checks the length of a record's data, bytes, in its header at `position`."""
    if len(buffer) - position < HEADER_BYTES:
        raise ShardError(path, offset, "the file ends within a record's header")
    length, crc = _HEADER.unpack_from(buffer, position)
    if crc != _masked_crc(buffer[position : position + 8]):
        if offset == 0 and bytes(buffer[:2]) in _COMPRESSED:
            raise ShardError(
                path, offset, "a compressed shard", remedy="Write it anew without compression."
            )
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
      path, offset: the place of the record, for the message.

    Raises:
      ShardError: the bytes are not those that were written.
    """
    view = memoryview(record)
    length = _length(view, 0, path, offset)
    if len(record) != HEADER_BYTES + length + FOOTER_BYTES:
        raise ShardError(path, offset, "the record is not as long as it was when it was indexed")
    (crc,) = _FOOTER.unpack_from(record, len(record) - FOOTER_BYTES)
    if crc != _masked_crc(view[HEADER_BYTES:-FOOTER_BYTES]):
        raise ShardError(path, offset, "the checksum of a record's data does not match")
