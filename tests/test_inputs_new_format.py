"""A new format of images is one row of one table: here PPM, by Pillow, and by an operation."""

import io
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
from trainer.inputs.images import encoded, graph_decoders
from trainer.inputs.images.decoder import Decoder

HEIGHT, WIDTH = 24, 20


PPM = encoded.Format("PPM", rb"P6\s", (".ppm", ".pnm"))


def decode_ppm(contents, window):
    """Decodes what follows the header: `P6`, the width, the height and the brightest level."""
    _, width, height, _ = tf.unstack(tf.strings.split(contents, maxsplit=4)[:4], num=4)
    shape = [tf.strings.to_number(height, tf.int32), tf.strings.to_number(width, tf.int32), 3]
    start = tf.strings.length(tf.strings.join(["P6 ", width, " ", height, " 255 "]))
    length = tf.strings.length(contents) - start
    pixels = tf.io.decode_raw(tf.strings.substr(contents, start, length), tf.uint8)
    return encoded.crop(tf.reshape(pixels, shape), window)


@pytest.fixture(params=["by Pillow", "in the graph"])
def with_ppm(monkeypatch, request):
    """The table has one row more."""
    row = PPM._replace(decode=decode_ppm if request.param == "in the graph" else None)
    monkeypatch.setattr(encoded, "FORMATS", (*encoded.FORMATS, row))
    return row


def write_image(root, label, name, data):
    (root / label).mkdir(parents=True)
    (root / label / name).write_bytes(data)


def pillow_pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("cache", ["encoded", pytest.param("decoded", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("with_ppm")
def test_a_folder_of_images_in_it_and_others_is_read(tmp_path, cache):
    # Of one colour: in noise two libraries round a JPEG's pixels differently.
    jpeg = encode(np.full((16, 16, 3), (200, 30, 90), np.uint8), "JPEG")
    images = {
        "0": ("x.jpg", jpeg),
        "1": ("x.png", encode(noise(1, 16, 16))),
        "2": ("x.ppm", encode(noise(2, 16, 16), "PPM")),
        "3": ("x.PNM", encode(noise(3, 16, 16), "PPM")),  # A suffix that no other format has.
        "4": ("x.jpeg", encode(noise(4, 16, 16), "PPM")),  # A name that lies.
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


def test_it_is_decoded_in_whole_and_in_part(with_ppm):
    data = encode(noise(0, HEIGHT, WIDTH), "PPM")
    header = encoded.read_header(data)
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(Decoder().decode(data, header), pillow_pixels(data))
    if with_ppm.decode is not None:
        part = Decoder().decode_part(data, graph_decoders.number_of(header.format, 1), (3, 2, 5, 7))
        np.testing.assert_array_equal(part, pillow_pixels(data)[3:8, 2:9])


@pytest.mark.slow
def test_a_damaged_one_is_named_rightly(tmp_path, with_ppm):
    fault = "a PPM: image file is truncated" if with_ppm.decode is None else "a PPM that is damaged"
    for split in ("train", "validation"):
        write_image(tmp_path / split, "a", "x.ppm", encode(noise(0, HEIGHT, WIDTH), "PPM")[:-900])
    opened = dataset.open_dataset(create_config(data_dir=str(tmp_path)))
    for read in (read_evaluation, lambda data: read_train(data, steps=1)):
        with pytest.raises(UserError, match=rf"/a/x\.ppm: a bad image: {fault} "):
            read(opened)
    faults = [fault for verdict in Verifier(str(tmp_path)).run(1) for fault in verdict.faults]
    for split, told in zip(("train", "validation"), faults, strict=True):
        assert told.startswith(f"{tmp_path}/{split}/a/x.ppm: {fault} ")


@pytest.mark.usefixtures("with_ppm")
def test_messages_name_it():
    others = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000"
    with pytest.raises(encoded.BadImageError, match=rf"^gzip data, neither {others} nor PPM$"):
        encoded.read_header(b"\x1f\x8b")
    with pytest.raises(encoded.BadImageError, match=rf"^neither {others} nor PPM: it begins"):
        encoded.read_header(b"text")


def test_shards_have_it_as_the_graph_reads_it(tmp_path, with_ppm):
    data = encode(noise(0, HEIGHT, WIDTH), "PPM")
    write_image(tmp_path / "in", "a", "x.ppm", data)
    convert.convert(str(tmp_path / "in"), str(tmp_path / "out"))
    (record,) = tf.data.TFRecordDataset(str(tmp_path / "out" / "train-00000-of-00001"))
    features = tf.train.Example.FromString(record.numpy()).features.feature
    (stored,) = features["image/encoded"].bytes_list.value
    is_kept = with_ppm.decode is not None
    assert (stored == data) == is_kept
    np.testing.assert_array_equal(pillow_pixels(stored), pillow_pixels(data))
    assert features["image/format"].bytes_list.value == [b"PPM" if is_kept else b"PNG"]
    assert features["image/height"].int64_list.value == [HEIGHT]


def test_without_its_row_it_is_refused():
    with pytest.raises(encoded.BadImageError, match=r"AVIF nor JPEG 2000: it begins with b'P6"):
        encoded.read_header(encode(noise(0), "PPM"))


def test_no_two_formats_share_a_signature_or_a_suffix():
    for field in ("signature", "suffixes"):
        values = [getattr(row, field) for row in encoded.FORMATS]
        flat = values if field == "signature" else [value for row in values for value in row]
        assert len(set(flat)) == len(flat)


def test_suffixes_are_those_of_the_table():
    assert encoded.image_suffixes() == (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".jp2", ".j2k"),
    )


def test_the_table_is_there_without_tensorflow():
    program = (
        "import sys; from trainer.inputs.images import encoded; "
        "print(len(encoded.FORMATS), 'tensorflow' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == "8 False\n"
