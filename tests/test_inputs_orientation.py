"""EXIF orientation: all eight, in every format, turned as Pillow's `exif_transpose` turns them."""

import collections
import dataclasses
import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from input_data import create_config, read_evaluation, read_train
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from trainer.checkpoints import changes
from trainer.checkpoints.manifest import RunFacts
from trainer.config import Config, DataConfig, RunConfig
from trainer.distributed import Group, Worker
from trainer.inputs import dataset
from trainer.inputs.conversion import convert
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.images import encoded, orientation
from trainer.run import outputs

SIZE = 32
ORIENTATIONS = range(1, 9)
_TAG = 0x0112


def smooth(seed, height=48, width=80):
    """Colours that run into each other, so that JPEG changes them little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_turned(image, image_format, value, **options):
    """An encoded image with an EXIF orientation."""
    exif = Image.Exif()
    exif[_TAG] = value
    out = io.BytesIO()
    image.save(out, image_format, exif=exif, **options)
    return out.getvalue()


def with_thumbnail(data, thumbnail):
    """A JPEG whose EXIF block has a second directory with a thumbnail, as cameras write it."""
    start = data.index(b"Exif\0\0") + 6
    (length,) = struct.unpack_from(">H", data, start - 8)
    block = bytearray(data[start : start - 8 + length])
    order = "<" if block[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, first)
    struct.pack_into(f"{order}I", block, first + 2 + 12 * count, len(block))
    place = len(block) + 2 + 3 * 12 + 4
    # Of the thumbnail: an orientation of its own, which says nothing of the image; place and size.
    entries = ((_TAG, 3, 1), (0x0201, 4, place), (0x0202, 4, len(thumbnail)))
    block += struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        form = "Hxx" if kind == 3 else "I"
        block += struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{form}", value)
    block += bytes(4) + thumbnail
    head = data[: start - 8] + struct.pack(">H", 8 + len(block)) + b"Exif\0\0"
    return head + bytes(block) + data[start - 8 + length :]


def kinds():
    """(name, function from an image and an orientation to an encoded image)."""
    jpeg = {"quality": 95, "subsampling": 0}
    thumbnail = write_turned(smooth(9, 12, 20), "JPEG", 1)
    return {
        "x.jpg": lambda image, value: write_turned(image, "JPEG", value, **jpeg),
        "thumbnail.jpg": lambda image, value: with_thumbnail(
            write_turned(image, "JPEG", value, **jpeg), thumbnail
        ),
        "x.png": lambda image, value: write_turned(image, "PNG", value),
        "x.webp": lambda image, value: write_turned(image, "WEBP", value, lossless=True),
        "x.tif": lambda image, value: write_turned(image, "TIFF", value),
        "x.avif": lambda image, value: write_turned(image, "AVIF", value, quality=100),
    }


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """(a folder with a class for each kind and orientation, {class: the upright pixels})."""
    root = tmp_path_factory.mktemp("turned")
    upright = {}
    for name, encode in kinds().items():
        for value in ORIENTATIONS:
            label = f"{name}-{value}"
            data = encode(smooth(value), value)
            with Image.open(io.BytesIO(data)) as image:
                upright[label] = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            for split in ("train", "validation"):
                (root / split / label).mkdir(parents=True)
                (root / split / label / name).write_bytes(data)
    return root, upright


def centre(pixels):
    """The largest square in the middle, as large as the network's input, by Pillow."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def config_of(folder, **fields):
    return create_config(
        **{
            "data_dir": str(folder),
            "image_size": SIZE,
            "batch_size": 8,
            "crop_fraction": 1.0,
            "augment": "none",
            **fields,
        }
    )


def read(folder, split, **fields):
    """{label: pixels} of a data set's split, and the names of its classes."""
    opened = dataset.open_dataset(config_of(folder, **fields))
    steps = len(kinds())
    batches = read_train(opened, steps=steps) if split == "train" else read_evaluation(opened)
    names = opened.info.class_names
    return {
        names[label]: pixels
        for batch in batches
        for label, pixels in zip(batch.labels, batch.images, strict=True)
    }


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int)).mean()


@pytest.mark.parametrize("cache", ["none", pytest.param("decoded", marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_folders_images_are_upright(turned, split, cache):
    root, upright = turned
    seen = read(root, split, cache=cache)
    assert seen.keys() == upright.keys()
    for label, pixels in upright.items():
        assert difference(seen[label], centre(pixels)) < 1.5, label


def test_images_are_taken_as_stored_where_that_is_wanted(turned):
    root, upright = turned
    seen = read(root, "validation", exif_orientation="ignore")
    for label, pixels in upright.items():
        is_as_stored = label.endswith("-1") or label.startswith("x.tif")
        assert (difference(seen[label], centre(pixels)) < 1.5) == is_as_stored, label


@pytest.mark.slow
def test_converted_images_are_upright_and_are_not_turned_again(turned, tmp_path):
    root, upright = turned
    said = []
    convert.convert(str(root), str(tmp_path), say=said.append)
    # Of each kind 7 of 8 orientations, in two splits; also of TIFFs, which Pillow turns.
    assert f"{14 * len(kinds())} images turned upright, as their EXIF orientation says" in said
    for folder, count in ((root, 7 * len(kinds())), (tmp_path, 0)):
        counts = collections.Counter()
        for verdict in Verifier(str(folder)).run(2):
            assert not verdict.faults
            counts[verdict.split] += verdict.turned
        assert counts == {"train": count, "validation": count}
    seen = read(tmp_path, "validation")
    for label, pixels in upright.items():
        assert difference(seen[label], centre(pixels)) < 1.5, label
    for path in tmp_path.glob("validation-*"):
        for record in tf.data.TFRecordDataset(str(path)):
            features = tf.train.Example.FromString(record.numpy()).features.feature
            (label,) = features["image/class/text"].bytes_list.value
            (data,) = features["image/encoded"].bytes_list.value
            with Image.open(io.BytesIO(data)) as image:
                stored = np.asarray(image.convert("RGB"))
                assert image.getexif().get(_TAG, 1) == 1
            expected = upright[label.decode()]
            assert stored.shape == expected.shape
            allowed = 1.5 if ".jpg" in label.decode() else 0
            assert difference(stored, expected) <= allowed, label


@pytest.mark.slow
def test_shards_of_others_are_taken_as_stored_unless_told(turned, tmp_path):
    root, upright = turned
    label = "x.png-6"
    data = (root / "train" / label / "x.png").read_bytes()
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
    }
    record = tf.train.Example(features=tf.train.Features(feature=features))
    for split in ("train", "validation"):
        with tf.io.TFRecordWriter(str(tmp_path / f"{split}-00000-of-00001")) as writer:
            writer.write(record.SerializeToString())
    for given, turns in (("auto", False), ("apply", True), ("ignore", False)):
        opened = dataset.open_dataset(config_of(tmp_path, batch_size=1, exif_orientation=given))
        (batch,) = read_evaluation(opened)
        is_upright = difference(batch.images[0], centre(upright[label])) < 1.5
        assert is_upright == turns, given
        # A run's folder has what was done, whatever decided it, for all who use the network.
        config = Config(data=config_of(tmp_path, exif_orientation=given))
        config = dataclasses.replace(config, run=RunConfig(logdir=str(tmp_path)), mode="predict")
        outputs.describe_run(config, Worker(), opened.info, replaces=True)
        plain = Config(run=config.run, mode="predict", files=("a.jpg",))
        trained = outputs.as_trained(plain)
        assert trained.config.data.exif_orientation == ("apply" if turns else "ignore")
        assert trained.remarks == ()
        # It goes on so without a word.
        (tmp_path / "model.ckpt-7.index").touch()
        again, lines = outputs.as_begun(Config(data=config_of(tmp_path)), Group())
        assert (again.data.exif_orientation, lines) == ("auto", ())  # Without a --logdir.
        again, lines = outputs.as_begun(Config(data=config_of(tmp_path), run=config.run), Group())
        assert (again.data.exif_orientation, lines) == (trained.config.data.exif_orientation, ())


def test_a_folder_decides_too_what_is_done_with_orientation(turned):
    root, _ = turned
    for given, done in (("auto", "apply"), ("apply", "apply"), ("ignore", "ignore")):
        opened = dataset.open_dataset(config_of(root, exif_orientation=given))
        assert opened.info.exif_orientation == done


def test_what_an_earlier_version_left_open_is_told_where_pictures_are_read(tmp_path):
    outputs.write_model(Config(run=RunConfig(logdir=str(tmp_path))), Worker(), None)
    for mode, given, is_told in (
        ("predict", (), True),
        ("export", (), True),
        ("evaluate", (), False),  # By the data, as in training.
        ("predict", ("exif_orientation",), False),
    ):
        config = Config(run=RunConfig(logdir=str(tmp_path)), given=given)
        lines = outputs.as_trained(dataclasses.replace(config, mode=mode)).remarks
        assert ["--exif_orientation=ignore" in line for line in lines] == [True] * is_told
    # A run of such a version goes on without a word.
    now = dataclasses.asdict(Config(data=DataConfig(exif_orientation="ignore")))
    before, facts = (
        RunFacts(1, 8, 9, 8, "", {}, config, None) for config in (dataclasses.asdict(Config()), now)
    )
    assert changes.describe(before, facts) == []
    assert changes.describe(facts, before) == [
        "flags that have changed since: exif_orientation ignore -> auto"
    ]


def test_random_crops_are_those_of_the_upright_image(turned):
    """A turned file and an upright one with the same pixels give the same training examples."""
    root, upright = turned
    pairs = {}
    for number, value in enumerate(ORIENTATIONS):
        label = f"x.png-{value}"
        data = (root / "train" / label / "x.png").read_bytes()
        out = io.BytesIO()
        Image.fromarray(upright[label]).save(out, "PNG")
        pairs[number] = (data, out.getvalue())

    class Split:
        labels = np.arange(len(pairs))

        def __init__(self, part):
            self.part = part

        def read(self, example):
            return pairs[example][self.part]

        def where(self, example):
            return str(example)

    batches = []
    for part in (0, 1):
        source = dataset.Source("x", Split(part), None, None, None, "")
        info = dataset.DatasetInfo("x", len(pairs), 0, len(pairs), None, "")
        config = create_config(image_size=SIZE, batch_size=8)
        opened = dataset.Dataset(config, source, info)
        batches.append(read_train(opened, steps=4))
    for first, second in zip(*batches, strict=True):
        np.testing.assert_array_equal(first.labels, second.labels)
        # Rows and columns are averaged in another order: a level may be rounded otherwise.
        assert np.abs(first.images.astype(int) - second.images).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_both_orders_of_bytes_and_both_types_are_read(order, kind):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    form = {3: "Hxx", 4: "I"}[kind]
    entry = struct.pack(f"{order}HHI", _TAG, kind, 1) + struct.pack(f"{order}{form}", 6)
    other = struct.pack(f"{order}HHII", 0x010F, 2, 1, 0)
    block = mark + struct.pack(f"{order}IH", 8, 2) + other + entry + bytes(4)
    assert orientation.read_tiff_orientation(block) == 6
    for length in range(len(block) - 7):  # Cut off anywhere before the value.
        assert orientation.read_tiff_orientation(block[:length]) == 1


def test_the_text_in_which_old_programs_wrote_exif_is_not_read():
    """Pillow does. One rule holds in training, prediction and export."""
    exif = Image.Exif()
    exif[_TAG] = 6
    block = exif.tobytes()
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    out = io.BytesIO()
    smooth(0).save(out, "PNG", pnginfo=text)
    with Image.open(out) as image:
        assert ImageOps.exif_transpose(image).size == image.size[::-1]
    assert encoded.read_header(out.getvalue()).orientation == 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not_is_none(value):
    data = write_turned(smooth(0), "JPEG", value)
    assert encoded.read_header(data).orientation == 1


def test_a_damaged_block_does_not_make_an_image_bad():
    data = write_turned(smooth(0), "JPEG", 6)
    start = data.index(b"Exif\0\0") + 6
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(start, start + 26, 4):
            damaged[place] = random.integers(256)
        assert encoded.read_header(bytes(damaged)).orientation in ORIENTATIONS
