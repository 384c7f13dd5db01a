"""A new format of images is one row of one table: here BMP, as the third."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from input_data import create_config, encode, noise, read_evaluation, read_train
from PIL import Image

from trainer.errors import UserError
from trainer.inputs import dataset
from trainer.inputs.conversion import convert
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.images import encoded
from trainer.inputs.images.decoder import Decoder

HEIGHT, WIDTH = 24, 20


def read_bmp_size(data):
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(height), width


def decode_bmp(contents, window):
    return encoded.crop(tf.io.decode_bmp(contents, channels=3), window)


BMP = encoded.Format("BMP", (b"BM",), (".bmp", ".dib"), read_bmp_size, decode_bmp)


@pytest.fixture
def with_bmp(monkeypatch):
    """The table has a third row."""
    monkeypatch.setattr(encoded, "FORMATS", (*encoded.FORMATS, BMP))


def write_image(root, label, name, data):
    (root / label).mkdir(parents=True)
    (root / label / name).write_bytes(data)


def pillow_pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("cache", ["none", "encoded", "decoded"])
@pytest.mark.usefixtures("with_bmp")
def test_a_folder_of_all_three_formats_is_read(tmp_path, cache):
    # Of one colour: in noise two libraries round a JPEG's pixels differently.
    jpeg = encode(np.full((16, 16, 3), (200, 30, 90), np.uint8), "JPEG")
    images = {
        "0": ("x.jpg", jpeg),
        "1": ("x.png", encode(noise(1, 16, 16))),
        "2": ("x.bmp", encode(noise(2, 16, 16), "BMP")),
        "3": ("x.DIB", encode(noise(3, 16, 16), "BMP")),  # A suffix that no other format has.
        "4": ("x.jpeg", encode(noise(4, 16, 16), "BMP")),  # A name that lies.
    }
    for split in ("train", "validation"):
        for label, (name, data) in images.items():
            write_image(tmp_path / split, label, name, data)
    config = create_config(
        data_dir=str(tmp_path), image_size=16, crop_fraction=1.0, augment="none", cache=cache
    )
    opened = dataset.open_dataset(config)
    batches = [*read_evaluation(opened), *read_train(opened, steps=5)]
    seen = set()
    for batch in batches:
        for label, pixels, weight in zip(batch.labels, batch.images, batch.weights, strict=True):
            if weight == 0:
                continue
            name, data = images[str(label)]
            allowed = 2 if name == "x.jpg" else 0
            difference = np.abs(pixels.astype(int) - pillow_pixels(data))
            assert difference.max() <= allowed, name
            seen.add(name)
    assert len(seen) == len(images)


@pytest.mark.usefixtures("with_bmp")
def test_a_part_of_it_is_decoded():
    data = encode(noise(0, HEIGHT, WIDTH), "BMP")
    header = encoded.read_header(data)
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    part = Decoder().decode(data, header, (3, 2, 5, 7))
    np.testing.assert_array_equal(part, pillow_pixels(data)[3:8, 2:9])


@pytest.mark.usefixtures("with_bmp")
def test_a_damaged_one_is_named_rightly(tmp_path):
    for split in ("train", "validation"):
        write_image(tmp_path / split, "a", "x.bmp", encode(noise(0, HEIGHT, WIDTH), "BMP")[:-900])
    opened = dataset.open_dataset(create_config(data_dir=str(tmp_path)))
    for read in (read_evaluation, lambda data: read_train(data, steps=1)):
        with pytest.raises(UserError, match=r"/a/x\.bmp: a bad image: a BMP that is damaged or "):
            read(opened)
    faults = [fault for verdict in Verifier(str(tmp_path)).run(1) for fault in verdict.faults]
    assert faults == [
        f"{tmp_path}/{split}/a/x.bmp: a BMP that is damaged or cut off"
        for split in ("train", "validation")
    ]


@pytest.mark.usefixtures("with_bmp")
def test_messages_name_all_three():
    assert encoded.format_names("or") == "JPEG, PNG or BMP"
    with pytest.raises(encoded.BadImageError, match=r"^a GIF, neither JPEG, PNG nor BMP \("):
        encoded.read_header(b"GIF89a")
    with pytest.raises(encoded.BadImageError, match=r"^neither JPEG, PNG nor BMP: it begins"):
        encoded.read_header(b"text")


@pytest.mark.usefixtures("with_bmp")
def test_shards_keep_it_as_it_is(tmp_path):
    data = encode(noise(0, HEIGHT, WIDTH), "BMP")
    write_image(tmp_path / "in", "a", "x.bmp", data)
    convert.convert(str(tmp_path / "in"), str(tmp_path / "out"))
    (record,) = tf.data.TFRecordDataset(str(tmp_path / "out" / "train-00000-of-00001"))
    features = tf.train.Example.FromString(record.numpy()).features.feature
    assert features["image/encoded"].bytes_list.value == [data]
    assert features["image/format"].bytes_list.value == [b"BMP"]
    assert features["image/height"].int64_list.value == [HEIGHT]


def test_without_its_row_it_is_refused_by_name():
    assert encoded.format_names("or") == "JPEG or PNG"
    with pytest.raises(encoded.BadImageError) as error:
        encoded.read_header(encode(noise(0), "BMP"))
    assert str(error.value) == "a BMP, neither JPEG nor PNG (scripts/make_tfrecords.py converts)"


def test_no_two_formats_share_a_signature_or_a_suffix():
    for field in ("signatures", "suffixes"):
        values = [value for row in encoded.FORMATS for value in getattr(row, field)]
        assert len(set(values)) == len(values)


def test_suffixes_of_formats_that_are_refused_are_those_of_images_too():
    assert encoded.image_suffixes() == (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png"),
        *(".gif", ".bmp", ".webp", ".tif", ".tiff"),
    )


def test_the_table_is_there_without_tensorflow():
    program = (
        "import sys; from trainer.inputs.images import encoded; "
        "print(len(encoded.FORMATS), 'tensorflow' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == "2 False\n"
