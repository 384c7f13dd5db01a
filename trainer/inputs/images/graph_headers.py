"""Format, size and orientation of an encoded image by operations of the graph, without Python.

For an exported network, which gets encoded images from its clients. What `encoded.read_header`
finds is found here in the same order and by the same rules, of those formats that operations of the
graph decode.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.inputs.images import encoded, orientation
from trainer.inputs.images.by_pillow import MAX_PIXELS

# The places of the formats in `encoded.FORMATS`.
JPEG, PNG = ([row.name for row in encoded.FORMATS].index(name) for name in ("JPEG", "PNG"))
_BEGINNINGS = {JPEG: encoded.JPEG_BEGINNING, PNG: encoded.PNG_BEGINNING}
# Segments of a JPEG, or chunks of a PNG, that are looked at: each takes some 50 microseconds, and a
# file of nothing else must not keep a server busy. Chunks of pixels have 8 KiB or more.
_MOST_PARTS = 2**15
# The longest marker, length and beginning of a segment that is looked at.
_SEGMENT_BYTES = 4 + len(orientation.EXIF)


class GraphHeader(NamedTuple):
    """The fields of `encoded.ImageHeader` as tensors: int64, each of the same shape.

    Attributes:
      place: the format's place in `encoded.FORMATS`.
      height, width: the size of the image as it is stored, pixels.
      orientation: the EXIF orientation, 1 to 8.
    """

    place: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    orientation: tf.Tensor


def read_header(contents: tf.Tensor, number: tf.Tensor, *, turns_upright: bool) -> GraphHeader:
    """Adds the operations that read an image's header; they fail where it is none.

    Args:
      contents: the encoded image: string, scalar.
      number: the number of the image in its batch, for messages: int32, scalar.
      turns_upright: whether the orientation is looked for; else it is that of an upright image.

    Returns:
      tensors without dimensions.
    """
    places = {
        place: tf.equal(tf.strings.substr(contents, 0, len(beginning)), beginning)
        for place, beginning in _BEGINNINGS.items()
    }
    known = tf.debugging.Assert(
        tf.logical_or(*places.values()),
        [_of(number), "neither JPEG nor PNG, which alone are taken here"],
    )
    with tf.control_dependencies([known]):
        place = tf.where(places[JPEG], np.int64(JPEG), np.int64(PNG))
    height, width, turned = tf.cond(
        tf.equal(place, JPEG),
        lambda: _read_jpeg(contents, number, turns_upright=turns_upright),
        lambda: _read_png(contents, number, turns_upright=turns_upright),
    )
    # A side alone may be so large that the product has no room in 64 bits.
    is_small = (tf.maximum(height, width) <= MAX_PIXELS) & (height * width <= MAX_PIXELS)
    allowed = tf.debugging.Assert(
        (height > 0) & (width > 0) & is_small,
        [_of(number), "width and height", width, height, f"1 to {MAX_PIXELS} pixels are allowed"],
    )
    with tf.control_dependencies([allowed]):
        return GraphHeader(*map(tf.identity, (place, height, width, turned)))


def _of(number: tf.Tensor) -> tf.Tensor:
    """Returns the beginning of a message about an image."""
    return tf.strings.format("image {} of the batch", number)


def _bytes_at(contents: tf.Tensor, position: tf.Tensor, count: int) -> tf.Tensor:
    """Returns bytes of a text, and 0 for those behind its end: int64 [count]."""
    piece = tf.strings.substr(contents, position, np.int64(count))
    return tf.cast(tf.io.decode_raw(piece, tf.uint8, fixed_length=count), tf.int64)


def _number(digits: tf.Tensor) -> tf.Tensor:
    """Returns the number that the bytes in the last dimension write, the highest first."""
    count = digits.shape[-1]
    return tf.reduce_sum(digits * 256 ** np.arange(count - 1, -1, -1, dtype=np.int64), axis=-1)


def _is_one_of(value: tf.Tensor, values: frozenset[int]) -> tf.Tensor:
    return tf.reduce_any(tf.equal(value, np.array(sorted(values), np.int64)))


def _are(values: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(tf.equal(values, np.frombuffer(text, np.uint8).astype(np.int64)))


def _read_jpeg(contents: tf.Tensor, number: tf.Tensor, *, turns_upright: bool) -> list[tf.Tensor]:
    """Returns height, width and orientation: `_read_jpeg_shape` of `encoded`, as a loop.

    The loop ends at the first start of a frame, and remembers the first EXIF segment before.
    """
    size = tf.strings.length(contents)
    nowhere = tf.constant(-1, tf.int64)

    def goes_on(
        position: tf.Tensor, exif: tf.Tensor, frame: tf.Tensor, ends: tf.Tensor
    ) -> tf.Tensor:
        del exif, frame
        return ~ends & (position < tf.cast(size, tf.int64))

    def look(
        position: tf.Tensor, exif: tf.Tensor, frame: tf.Tensor, ends: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        del ends
        found = _bytes_at(contents, position, _SEGMENT_BYTES)
        marker = found[1]
        # Bytes before a marker are passed over, and so are those that fill up before its last.
        is_marker = tf.equal(found[0], 0xFF) & tf.not_equal(marker, 0xFF)
        is_alone = _is_one_of(marker, encoded.WITHOUT_LENGTH | {0})
        is_frame = is_marker & _is_one_of(marker, encoded.START_OF_FRAME)
        is_exif = is_marker & tf.equal(marker, encoded.APP1) & _are(found[4:], orientation.EXIF)
        length = tf.where(is_alone, np.int64(0), _number(found[2:4]))
        return (
            position + tf.where(is_marker, 2 + length, 1),
            tf.where(is_exif & (exif < 0), position, exif),
            tf.where(is_frame, position, frame),
            is_frame | (is_marker & tf.equal(marker, encoded.START_OF_SCAN)),
        )

    _, exif, frame, _ = tf.while_loop(
        goes_on,
        look,
        (tf.constant(2, tf.int64), nowhere, nowhere, tf.constant(False)),
        maximum_iterations=_MOST_PARTS,
        parallel_iterations=1,
    )
    has_frame = tf.debugging.Assert(
        frame >= 0, [_of(number), "a JPEG that ends within its header, or has an endless one"]
    )
    with tf.control_dependencies([has_frame]):
        # Marker, length, bits, height, width (ITU-T T.81, B.2.2).
        found = _bytes_at(contents, tf.identity(frame), 9)
    height, width = _number(found[5:7]), _number(found[7:9])

    def read_exif() -> tf.Tensor:
        length = _number(_bytes_at(contents, exif + 2, 2))
        start = exif + 4 + len(orientation.EXIF)
        # The length counts itself.
        return _read_tiff(contents, start, exif + 2 + length - start)

    return [height, width, _orientation_if(turns_upright, exif >= 0, read_exif)]


def _read_png(contents: tf.Tensor, number: tf.Tensor, *, turns_upright: bool) -> list[tf.Tensor]:
    """Returns height, width and orientation; see `encoded`."""
    found = _bytes_at(contents, tf.constant(0, tf.int64), 24)
    has_size = tf.debugging.Assert(
        _are(found[12:16], b"IHDR"), [_of(number), "a damaged PNG header"]
    )
    with tf.control_dependencies([has_size]):
        width, height = _number(found[16:20]), _number(found[20:24])
    size = tf.cast(tf.strings.length(contents), tf.int64)

    def goes_on(position: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        return (exif < 0) & (position + encoded.PNG_CHUNK_BYTES <= size)

    def look(position: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chunk = _bytes_at(contents, position, 8)
        following = position + encoded.PNG_CHUNK_BYTES + _number(chunk[:4])
        return following, tf.where(_are(chunk[4:], b"eXIf"), position, exif)

    def find_exif() -> tf.Tensor:
        position, exif = tf.while_loop(
            goes_on,
            look,
            (tf.constant(encoded.PNG_HEADER_BYTES, tf.int64), tf.constant(-1, tf.int64)),
            maximum_iterations=_MOST_PARTS,
            parallel_iterations=1,
        )
        ends = tf.debugging.Assert(
            ~goes_on(position, exif), [_of(number), f"a PNG of more than {_MOST_PARTS} chunks"]
        )
        with tf.control_dependencies([ends]):
            return tf.identity(exif)

    def read_exif() -> tf.Tensor:
        return _read_tiff(contents, exif + 8, _number(_bytes_at(contents, exif, 4)))

    exif = find_exif() if turns_upright else tf.constant(-1, tf.int64)
    return [height, width, _orientation_if(turns_upright, exif >= 0, read_exif)]


def _orientation_if(
    turns_upright: bool, has_exif: tf.Tensor, read_exif: Callable[[], tf.Tensor]
) -> tf.Tensor:
    upright = tf.constant(orientation.UPRIGHT, tf.int64)
    return tf.cond(has_exif, read_exif, lambda: upright) if turns_upright else upright


def _read_tiff(contents: tf.Tensor, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in a block of an image: `orientation.read_tiff_orientation`.

    Args:
      contents: the encoded image.
      start, length: the block's place and its length, which may go beyond the image's end: int64.
    """
    size = tf.cast(tf.strings.length(contents), tf.int64)
    block = tf.strings.substr(contents, tf.minimum(start, size), tf.maximum(length, 0))
    # What is read behind the end is 0; whether a number lies within is asked besides.
    found = tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64)
    size = tf.size(found, tf.int64)
    found = tf.concat([found, tf.zeros([8], tf.int64)], axis=0)
    is_little, is_big = (
        tf.equal(tf.strings.substr(block, 0, 4), mark) for mark in orientation.BYTE_ORDERS
    )

    def read(places: tf.Tensor, count: int) -> tf.Tensor:
        within = tf.clip_by_value(places[..., None] + np.arange(count), 0, size)
        digits = tf.ensure_shape(tf.gather(found, within), [*places.shape, count])
        return tf.where(is_little, _number(digits[..., ::-1]), _number(digits))

    directory = read(tf.constant(4, tf.int64), 4)
    first = directory + 2
    # Those whose tag and type are within the block.
    entries = (size - first - 4) // orientation.ENTRY_BYTES + 1
    entries = tf.clip_by_value(entries, 0, read(directory, 2))
    places = first + orientation.ENTRY_BYTES * tf.range(entries)
    kinds = read(places + 2, 2)
    is_short = tf.equal(kinds, orientation.SHORT)
    is_it = tf.equal(read(places, 2), orientation.TAG)
    is_it &= is_short | tf.equal(kinds, orientation.LONG)
    values = tf.where(is_short, read(places + 8, 2), read(places + 8, 4))
    ends = places + 8 + tf.where(is_short, np.int64(2), np.int64(4))
    values = tf.where((ends <= size) & (values >= 1) & (values <= 8), values, orientation.UPRIGHT)
    # The first entry of the tag counts, whatever it says.
    chosen = tf.concat([tf.boolean_mask(values, is_it), [orientation.UPRIGHT]], axis=0)[0]
    return tf.where(is_little | is_big, chosen, orientation.UPRIGHT)
