"""Shards that others wrote: tf-slim's ImageNet form, without a manifest."""

import collections
import io
import shutil

import numpy as np
import pytest
import tensorflow as tf
from input_data import (
    create_config,
    encode,
    example,
    labels_of,
    noise,
    read_evaluation,
    read_train,
)
from PIL import Image

from trainer.errors import ConfigError, UserError
from trainer.inputs import dataset
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.sources import index

CLASSES = 7


def slim_example(image, label):
    """An example as tf-slim's build_imagenet_data.py has it: labels from 1, boxes."""

    def ints(*values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def floats(*values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        "image/height": ints(24),
        "image/width": ints(20),
        "image/colorspace": text(b"RGB"),
        "image/channels": ints(3),
        "image/class/label": ints(label),
        "image/class/synset": text(b"n01440764"),
        "image/class/text": text(b"tench, Tinca tinca"),
        "image/object/bbox/xmin": floats(0.1, 0.2),
        "image/object/bbox/xmax": floats(0.5, 0.6),
        "image/object/bbox/ymin": floats(0.1, 0.2),
        "image/object/bbox/ymax": floats(0.5, 0.6),
        "image/object/bbox/label": ints(label, label),
        "image/format": text(b"JPEG"),
        "image/filename": text(b"n01440764_10026.JPEG"),
        "image/encoded": text(image),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def ramp(number):
    """Pixels that a JPEG keeps to a few shades: uint8 [24, 20, 3]."""
    rows, columns, channels = np.meshgrid(range(24), range(20), range(3), indexing="ij")
    return (20 + 9 * number + 3 * rows + 2 * columns + 4 * channels).astype(np.uint8)


def cmyk_jpeg(pixels):
    """A CMYK JPEG with ink where the RGB pixels are dark, and some black over all."""
    inks = np.dstack([255 - pixels, np.full(pixels.shape[:2], 40, np.uint8)])
    out = io.BytesIO()
    image = Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), inks.tobytes())
    image.save(out, "JPEG", quality=100)
    return out.getvalue()


def write_slim_shards(folder, split, count, shards):
    """`count` examples: among them one grey, one CMYK JPEG, and one PNG that is called JPEG."""
    for shard in range(shards):
        with tf.io.TFRecordWriter(str(folder / f"{split}-{shard:05}-of-{shards:05}")) as writer:
            for number in range(shard, count, shards):
                pixels = ramp(number)
                images = {
                    3: encode(pixels[..., 0], "JPEG"),
                    4: cmyk_jpeg(pixels),
                    5: encode(pixels),
                }
                image = images.get(number, encode(pixels, "JPEG", quality=100))
                writer.write(slim_example(image, 1 + number % CLASSES))


@pytest.fixture(scope="module")
def slim_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slim")
    write_slim_shards(folder, "train", 30, 4)
    write_slim_shards(folder, "validation", 11, 2)
    return folder


@pytest.mark.slow
def test_slims_shards_train_and_evaluate_with_the_label_offset_alone(slim_folder):
    data = dataset.open_dataset(create_config(data_dir=str(slim_folder), label_offset=1))
    assert data.info[:4] == ("tfrecord", 30, 11, CLASSES)
    labels = labels_of(read_train(data, steps=15))[:60]
    expected = collections.Counter(number % CLASSES for number in range(30))
    assert collections.Counter(labels[:30].tolist()) == expected
    assert collections.Counter(labels[30:].tolist()) == expected
    counted = collections.Counter()
    for batch in read_evaluation(data):
        counted.update(batch.labels[batch.weights == 1].tolist())
    assert counted == collections.Counter(number % CLASSES for number in range(11))


def test_the_label_offset_is_asked_for(slim_folder):
    with pytest.raises(UserError, match=r"--label_offset: must be given for .* begin at 1"):
        dataset.open_dataset(create_config(data_dir=str(slim_folder)))


def test_a_network_with_fewer_classes_than_the_data_is_refused(slim_folder):
    config = create_config(data_dir=str(slim_folder), label_offset=1)
    with pytest.raises(ConfigError, match=r"--num_classes: must be at least 7, .* got 6"):
        dataset.open_dataset(config, num_classes=6)
    assert dataset.open_dataset(config, num_classes=1000).info.num_classes == 1000
    with pytest.raises(UserError, match=r"labels of the train split go from -1 to 5"):
        dataset.open_dataset(create_config(data_dir=str(slim_folder), label_offset=2))


def test_grey_cmyk_and_misnamed_images_have_their_pixels(slim_folder):
    config = create_config(
        data_dir=str(slim_folder), label_offset=1, image_size=20, crop_fraction=1.0, batch_size=1
    )
    data = dataset.open_dataset(config)
    # The order of evaluation: shard 0 has the even numbers, shard 1 the odd ones.
    numbers = [*range(0, 11, 2), *range(1, 11, 2)]
    images = dict(zip(numbers, (b.images[0] for b in read_evaluation(data)), strict=True))
    for number in range(11):
        wanted = ramp(number)[2:22].astype(int)  # The centre of 24 x 20.
        if number == 3:
            wanted = wanted[..., :1]
        if number == 4:
            wanted = wanted * (255 - 40) // 255
        error = np.abs(images[number].astype(int) - wanted).max()
        assert error <= (0 if number == 5 else 6)


def test_the_scan_is_remembered_beside_the_data(slim_folder, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(slim_folder, folder)
    config = create_config(data_dir=str(folder), label_offset=1)
    first = dataset.open_dataset(config)
    assert (folder / ".train.index.npz").exists()
    scans = []
    scan = index.scan_shard
    monkeypatch.setattr(index, "scan_shard", lambda path: scans.append(path) or scan(path))
    assert dataset.open_dataset(config).info == first.info
    assert scans == []
    # Another shard: all is scanned again. A damaged memory: likewise.
    write_slim_shards(folder, "train", 34, 4)
    assert dataset.open_dataset(config).info.num_train_examples == 34
    assert len(scans) == 4
    (folder / ".train.index.npz").write_bytes(b"PK\3\4 damaged")
    assert dataset.open_dataset(config).info.num_train_examples == 34
    assert len(scans) == 8


def test_where_the_data_cannot_be_written_the_users_cache_remembers(
    slim_folder, tmp_path, monkeypatch
):
    paths = [str(slim_folder / f"validation-{shard:05}-of-00002") for shard in range(2)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    candidates = index._cache_paths(paths, "validation")
    assert candidates[1].startswith(str(tmp_path))
    monkeypatch.setattr(index, "_cache_paths", lambda *_: ["/proc/none/index", candidates[1]])
    first = index.load_index(paths, split="validation")
    monkeypatch.setattr(index, "scan_shard", None)
    second = index.load_index(paths, split="validation")
    for one, other in zip(first, second, strict=True):
        for part, other_part in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


def test_verify_finds_no_fault_in_slims_shards(slim_folder):
    verdicts = list(Verifier(str(slim_folder)).run(2))
    assert [verdict.faults for verdict in verdicts] == [()] * 6
    assert sum(verdict.examples for verdict in verdicts) == 41


def test_records_are_named_as_their_files_were_or_by_their_place(slim_folder, tmp_path):
    def open_train(folder):
        config = create_config(data_dir=str(folder), label_offset=0)
        return dataset.open_dataset(config, num_classes=8)._source.train

    assert open_train(slim_folder).short_name(7) == "n01440764_10026.JPEG"
    for shard, more in enumerate([{}, {"file_name": [b"b\xff.png"]}, {"file_name": []}]):
        with tf.io.TFRecordWriter(str(tmp_path / f"train-{shard:05}-of-00003")) as writer:
            writer.write(example(image=[encode(noise(0))], label=[0], **more))
            writer.write(example(image=[b""], label=[1], **more))
    split = open_train(tmp_path)
    assert split.short_name(2) == "b\udcff.png"
    (tmp_path / "train-00001-of-00003").write_bytes(b"")  # Of it the second record is gone.
    names = [split.short_name(number) for number in range(6)]
    assert names == ["shard 0:0", "shard 0:1", "shard 1:0", "shard 1:1", "shard 2:0", "shard 2:1"]


def test_labels_from_zero_need_no_flag(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "train-00000-of-00001")) as writer:
        for label in (2, 0):
            writer.write(slim_example(encode(noise(label), "JPEG"), label))
    info = dataset.open_dataset(create_config(data_dir=str(tmp_path))).info
    assert (info.num_train_examples, info.num_validation_examples, info.num_classes) == (2, 0, 3)


def test_records_that_are_no_images_are_refused(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "train-00000-of-00001")) as writer:
        writer.write(b"\x0a\x02hi")
    config = create_config(data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"train-00000-of-00001: byte 0: not a labelled image"):
        dataset.open_dataset(config)


def test_a_damaged_memory_of_the_scan_is_not_believed(slim_folder, tmp_path, caplog):
    """80 of them: bytes changed, cut off, more; each is told, and the labels stay right."""
    folder = tmp_path / "copy"
    shutil.copytree(slim_folder, folder)
    config = create_config(data_dir=str(folder), label_offset=1)
    labels = dataset.open_dataset(config)._source.train.labels.tolist()
    memory = folder / ".train.index.npz"
    good = memory.read_bytes()
    rng = np.random.default_rng(0)
    paths = sorted(str(path) for path in folder.glob("train-*"))
    for number in range(80):
        bad = bytearray(good)
        if number % 4 == 0:
            bad = bad[: rng.integers(len(bad))]
        elif number % 4 == 1:
            bad += b"x"
        else:
            place = rng.integers(len(bad))
            bad[place] ^= 1 + rng.integers(255)
        memory.write_bytes(bytes(bad))
        caplog.clear()
        found = index.load_index(paths, split="train")
        assert np.concatenate([shard.labels for shard in found]).tolist() == [n + 1 for n in labels]
        assert caplog.text.count(f"{memory}: is damaged, or of an earlier version") == 1
    assert memory.read_bytes() == good


def test_without_a_home_the_index_is_only_beside_the_data(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(index.os.path, "expanduser", lambda path: path)  # No home is known.
    assert index._cache_paths(["/data/train-0"], "train") == ["/data/.train.index.npz"]
    assert index._cache_paths(["gs://data/train-0"], "train") == []


def write_records(path, *records, compression=""):
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)


def test_shards_of_tensorflow_datasets_are_read(tmp_path):
    """Of its image classification data sets, whose features are called `image` and `label`."""
    for split, labels in (("train", (0, 2, 1)), ("validation", (1,))):
        records = [example(image=[encode(noise(n))], label=[n], file_name=[b"x"]) for n in labels]
        write_records(tmp_path / f"imagenet2012-{split}.tfrecord-00000-of-00001", *records)
    data = dataset.open_dataset(create_config(data_dir=str(tmp_path)))
    assert data.info[:4] == ("tfrecord", 3, 1, 3)
    assert data._source.train.labels.tolist() == [0, 2, 1]
    assert data._source.train.read(1) == encode(noise(2))
    verdicts = list(Verifier(str(tmp_path)).run(1))
    assert [verdict.faults for verdict in verdicts] == [(), ()]


@pytest.mark.parametrize(
    ("features", "fault"),
    [
        (
            {"image/encoded": [b"x"], "image/class/label": [b"cat"]},
            "label: bytes values, where integer ones",
        ),
        (
            {"image/encoded": [b"x"], "image/class/label": [1.0]},
            "label: float values, where integer ones",
        ),
        ({"image/encoded": [b"x"], "image/class/label": []}, "label: no integer value"),
        ({"image/encoded": [b"x"], "image/class/label": [1, 2]}, "label: 2 integer values"),
        (
            {"image/encoded": [5], "image/class/label": [1]},
            "encoded: integer values, where bytes ones",
        ),
        ({"jpeg": [b"x"], "target": [1]}, "label or label; its features: jpeg, target"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_records_are_refused_with_what_they_hold(tmp_path, features, fault):
    write_records(tmp_path / "train-00000-of-00001", example(features))
    with pytest.raises(UserError) as error:
        dataset.open_dataset(create_config(data_dir=str(tmp_path)))
    message = str(error.value)
    assert fault in message
    assert "Restore" not in message
    assert "scripts/make_tfrecords.py writes such" in message


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_compressed_shards_are_called_so(tmp_path, compression):
    record = example(image=[encode(noise(0))], label=[0])
    write_records(tmp_path / "train-00000-of-00001", record, compression=compression)
    with pytest.raises(UserError, match=r"byte 0: a compressed shard\. Write it anew without"):
        dataset.open_dataset(create_config(data_dir=str(tmp_path)))


def test_what_looks_like_shards_is_named_where_there_are_none(tmp_path):
    write_records(tmp_path / "flowers.tfrecord", b"x")
    with pytest.raises(UserError, match=r"no shards named like train-.*flowers\.tfrecord"):
        dataset.open_dataset(create_config(data_dir=str(tmp_path), dataset="tfrecord"))
