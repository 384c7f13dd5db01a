"""TFRecords and Examples, read and written here and by TensorFlow, and image headers."""

import contextlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from input_data import encode, example, noise
from PIL import Image

from trainer.inputs.images import encoded
from trainer.inputs.images.encoded import read_header
from trainer.inputs.source import BadImageError
from trainer.inputs.sources import example_proto, tfrecord


def test_an_example_is_what_tensorflow_reads():
    data = example_proto.serialize({"image": b"x" * 300, "label": 12345678901, "name": b""})
    features = tf.train.Example.FromString(data).features.feature
    assert features["image"].bytes_list.value == [b"x" * 300]
    assert features["label"].int64_list.value == [12345678901]
    assert features["name"].bytes_list.value == [b""]


@pytest.mark.parametrize("label", [0, 1, 127, 128, 2**40, -1])
def test_features_of_tensorflows_examples_are_found(label):
    data = example(other=[1.5, 2.5], label=[label], box=[0.0] * 9, image=[b"abc" * 100])
    view = memoryview(data)
    found = example_proto.find_features(view, ("label", "image", "absent"))
    assert set(found) == {"label", "image"}
    assert example_proto.read_int64(view, found["label"]) == label
    start, end = example_proto.find_bytes(view, found["image"])
    assert data[start:end] == b"abc" * 100


def test_an_integer_of_more_than_64_bits_is_refused():
    too_many = b"\xff" * 9 + b"\x7f"
    view = memoryview(b"\x1a\x0b\x08" + too_many)
    with pytest.raises(ValueError, match="more than 64 bits"):
        example_proto.read_int64(view, example_proto.Span(0, len(view)))


def test_an_unpacked_list_of_integers_is_read():
    # field 3 (Int64List) of 2 bytes: field 1 as a plain varint, 5.
    assert example_proto.read_int64(memoryview(b"\x1a\x02\x08\x05"), example_proto.Span(0, 4)) == 5


@pytest.mark.parametrize(
    ("label", "image", "of_label", "of_image"),
    [
        ([b"text"], [5], "bytes values, where integer ones", "integer values, where bytes ones"),
        ([1.5], [1.5], "float values, where integer ones", "float values, where bytes ones"),
        ([], [], "no integer value", "integer values, where bytes ones"),
        ([1, 2, 3], [b"a", b"b"], "3 integer values, where one", "2 bytes values, where one"),
    ],
    ids=str,
)
def test_features_of_another_type_or_number_of_values_are_refused(label, image, of_label, of_image):
    view = memoryview(example(label=label, image=image))
    found = example_proto.find_features(view, ("label", "image"))
    with pytest.raises(ValueError, match=of_label):
        example_proto.read_int64(view, found["label"])
    with pytest.raises(ValueError, match=of_image):
        example_proto.find_bytes(view, found["image"])


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        # Field 3 (Int64List) with field 1, a packed list, that is empty; a 7 comes behind it.
        (b"\x1a\x02\x0a\x00\x07", "no integer value"),
        # A list whose only integer goes on behind its end.
        (b"\x1a\x03\x0a\x01\x80\x01", "it ends within an integer"),
        # A plain integer that does.
        (b"\x1a\x02\x08\x80\x01", "it ends within an integer"),
        # Two of them: packed, and plain.
        (b"\x1a\x04\x0a\x02\x01\x02", "2 integer values"),
        (b"\x1a\x04\x08\x01\x08\x02", "2 integer values"),
    ],
)
def test_nothing_is_read_behind_a_messages_end(data, fault):
    end = 2 + data[1]
    with pytest.raises(ValueError, match=fault):
        example_proto.read_int64(memoryview(data), example_proto.Span(0, end))


def test_any_bytes_are_an_example_or_a_value_error():
    good = bytearray(example(label=[3], image=[b"abc" * 20]))
    random = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(good)
        for place in random.integers(len(data), size=3):
            data[place] = random.integers(256)
        view = memoryview(bytes(data[: random.integers(1, len(data) + 1)]))
        with contextlib.suppress(ValueError):
            found = example_proto.find_features(view, ("label", "image"))
            for span in found.values():
                assert 0 <= span.start <= span.end <= len(view)


def test_records_are_what_tensorflow_reads(tmp_path):
    records = [b"", b"one", bytes(range(256)) * 50]
    path = tmp_path / "records"
    path.write_bytes(b"".join(tfrecord.frame(record) for record in records))
    assert [r.numpy() for r in tf.data.TFRecordDataset(str(path))] == records


def test_tensorflows_records_are_found(tmp_path):
    records = [b"", b"one", bytes(range(256)) * 50]
    path = str(tmp_path / "records")
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    buffer = memoryview((tmp_path / "records").read_bytes())
    found = list(tfrecord.scan(buffer, path))
    assert [bytes(data) for _, data in found] == records
    ends = [*(offset for offset, _ in found[1:]), len(buffer)]
    for (offset, _), end in zip(found, ends, strict=True):
        tfrecord.verify(bytes(buffer[offset:end]), path, offset)


def test_every_flipped_bit_of_a_record_is_found():
    record = tfrecord.frame(b"some data")
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(tfrecord.ShardError, match=r"^shard: byte 77: the checksum"):
            tfrecord.verify(bytes(damaged), "shard", 77)


def test_a_length_beyond_the_file_is_refused_before_it_is_read():
    length = struct.pack("<Q", 2**60)
    data = length + tfrecord.frame(length)[-4:]
    with pytest.raises(tfrecord.ShardError, match=r"the file ends within a record"):
        list(tfrecord.scan(memoryview(data), "shard"))


def jpeg(pixels, **options):
    return encode(pixels, "JPEG", **options)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (jpeg(noise(0, 30, 70)), "JPEG"),
        (jpeg(noise(0, 30, 70), progressive=True), "JPEG"),
        (jpeg(noise(0, 30, 70)[..., 0]), "JPEG"),
        (jpeg(noise(0, 30, 70), exif=b"Exif\0\0" + bytes(60000)), "JPEG"),
        (jpeg(noise(0, 30, 70), comment=b"\xff\xc0\xff\xd8" * 9), "JPEG"),
        (encode(noise(0, 30, 70)), "PNG"),
        (encode(noise(0, 30, 70)[..., 0]), "PNG"),
    ],
)
def test_headers_tell_format_and_size(data, name):
    number, *size, orientation = read_header(data)
    assert orientation == 1
    assert encoded.FORMATS[number].name == name
    assert size == [30, 70]
    assert Image.open(io.BytesIO(data)).size == (70, 30)


def test_an_avif_is_told_by_any_of_its_brands():
    avif = encode(noise(0, 30, 70), "AVIF")
    assert avif[8:12] == b"avif"
    for brand in (b"avif", b"mif1"):
        data = avif[:8] + brand + avif[12:]
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "AVIF"
        assert encoded.FORMATS[read_header(data).format].name == "AVIF"
    # What comes behind the list of brands is none.
    for brands in (b"mif1\0\0\0\0mif1heic", b"msf1\0\0\0\0hevc", b"heic\0\0\0\0mif1heic"):
        box = (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands
        with pytest.raises(BadImageError, match=r"^a HEIC, neither"):
            read_header(box + b"\0\0\0\x18meta" + b"avif" * 9)


def test_a_jpeg_with_an_embedded_thumbnail_has_its_own_size():
    thumbnail = jpeg(noise(0, 4, 5))
    data = jpeg(noise(0, 30, 70), exif=b"Exif\0\0" + thumbnail)
    assert read_header(data)[1:3] == (30, 70)


def test_any_bytes_have_a_header_or_are_bad():
    random = np.random.default_rng(0)
    for good in (jpeg(noise(0, 16, 16)), encode(noise(0, 16, 16))):
        for length in range(400):
            data = bytearray(good[:length])
            if length > 10 and length % 3 == 0:
                data[random.integers(length)] = random.integers(256)
            with contextlib.suppress(BadImageError):
                assert read_header(bytes(data)).height > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_a_damaged_image_neither_ends_the_process_nor_raises_anything_else(name):
    """In a process of its own, which is there at the end; docs/behaviours.md has 1,000 of each."""
    program = str(Path(__file__).parent / "programs" / "damaged_images.py")
    said = subprocess.run(
        [sys.executable, program, name, "200"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert said.returncode == 0, said.stderr
    decoded, refused = map(int, said.stdout.split())
    assert decoded > 50
    assert refused > 50
