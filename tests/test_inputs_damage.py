"""Damaged input: one line that says where, or a counted replacement; never fewer examples."""

import collections
import errno
import functools
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from input_data import (
    create_config,
    encode,
    labels_of,
    noise,
    read_batches,
    read_evaluation,
    read_train,
    write_folder,
)

from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs import dataset
from trainer.inputs.conversion import convert
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.sources import storage

IMAGES = 12  # One class each, so that a label says which image it is.
BAD = 5


def big_png():
    """A PNG of 40,000 x 40,000 pixels in few bytes: decoded, 4.8 GB."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


BAD_IMAGES = {
    "text": (b"not an image at all\n", "neither JPEG, PNG, "),
    "empty": (b"", "0 bytes"),
    "big": (big_png(), "40000 x 40000 pixels"),
    "cut jpeg": (encode(noise(1, 64, 64), "JPEG")[:1500], "a JPEG that is damaged or cut off"),
    "cut png": (encode(noise(1, 64, 64))[:-500], "a PNG that is damaged or cut off"),
    "cut webp": (encode(noise(1, 64, 64), "WEBP")[:-500], "a WebP: "),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC, neither JPEG, PNG, "),
}


# Two of them for --quick: what cannot be read, and what breaks off.
SOME_SLOW = [
    name if name in ("text", "cut png") else pytest.param(name, marks=pytest.mark.slow)
    for name in BAD_IMAGES
]


def write_images(root, bad=None):
    """One image per class; that of class BAD is `bad`, if given."""
    for split in ("train", "validation"):
        for number in range(IMAGES):
            folder = root / split / f"{number:02}"
            folder.mkdir(parents=True)
            data = bad if bad is not None and number == BAD else encode(noise(number))
            (folder / "image.jpg").write_bytes(data)


def folder_data(tmp_path, name, **fields):
    write_images(tmp_path, BAD_IMAGES[name][0])
    # Without random crops: some of them end above the place where a JPEG is cut off.
    config = create_config(data_dir=str(tmp_path), augment="shift", **fields)
    return dataset.open_dataset(config)


@pytest.fixture
def shards(tmp_path):
    """A folder with one shard per split."""
    write_images(tmp_path / "images")
    convert.convert(str(tmp_path / "images"), str(tmp_path / "shards"))
    return tmp_path / "shards"


def open_shards(folder, **fields):
    return dataset.open_dataset(create_config(data_dir=str(folder), **fields))


@pytest.mark.parametrize("name", SOME_SLOW)
def test_a_bad_image_stops_training_and_evaluation_with_one_line(tmp_path, name):
    data = folder_data(tmp_path, name)
    for split, read in (
        ("train", lambda: read_train(data, steps=3)),
        ("validation", lambda: read_evaluation(data)),
    ):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert f"{split}/{BAD:02}/image.jpg: a bad image: " in message
        assert BAD_IMAGES[name][1] in message
        assert "--max_bad_examples allows 0" in message
        assert "\n" not in message


def test_a_pipe_among_the_images_is_a_bad_one_that_nobody_waits_for(tmp_path):
    write_images(tmp_path)
    pipe = tmp_path / "train" / f"{BAD:02}" / "image.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    data = dataset.open_dataset(create_config(data_dir=str(tmp_path)))
    expected = r"image\.jpg: a bad image: cannot be read \(is a pipe or device\)"
    with pytest.raises(UserError, match=expected):
        read_train(data, steps=3)
    with pytest.raises(OSError, match="directory"):
        storage.read_file(str(tmp_path))


@pytest.fixture(scope="module")
def labels_without_bad(tmp_path_factory):
    """The labels that training reads in 6 steps where all images are good."""
    folder = tmp_path_factory.mktemp("good")
    write_images(folder)
    good = dataset.open_dataset(create_config(data_dir=str(folder)))
    return labels_of(read_train(good, steps=6))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME_SLOW)
def test_in_training_the_next_good_image_takes_a_bad_ones_place(tmp_path, labels_without_bad, name):
    data = folder_data(tmp_path, name, max_bad_examples=1)
    expected = labels_without_bad
    place = {int(position) for position in np.flatnonzero(expected == BAD)}
    batches, stream = read_batches(lambda: data.build_train(Worker(), seed=0), steps=6)
    read = labels_of(batches)
    for position, label in enumerate(expected[:-1]):
        assert read[position] == (expected[position + 1] if position in place else label)
    assert stream.bad_examples() == 1
    # The stream is still the same from any step on.
    resumed = read_train(data, start=2, steps=4)
    np.testing.assert_array_equal(labels_of(resumed), labels_of(batches[2:]))
    np.testing.assert_array_equal(resumed[0].images, batches[2].images)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_in_evaluation_a_bad_image_is_not_counted_and_the_others_keep_their_names(tmp_path, kind):
    data = folder_data(tmp_path, "cut jpeg", max_bad_examples=1)
    within = ""
    if kind == "shards":
        shards = str(tmp_path / "shards")
        convert.convert(str(tmp_path), shards, shard_bytes=4000, max_bad=2)
        data, within = open_shards(shards), "validation/"
    counted = collections.Counter()
    for rank in range(2):
        worker = Worker(rank, 2)
        batches, stream = read_batches(functools.partial(data.build_evaluation, worker))
        for step, batch in enumerate(batches):
            for row in np.flatnonzero(batch.weights):
                label = int(batch.labels[row])
                counted[label] += 1
                assert stream.name_of(step, row) == f"{within}{label:02}/image.jpg"
    assert counted == collections.Counter(set(range(IMAGES)) - {BAD})


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_verify_names_a_bad_image(tmp_path, name):
    write_images(tmp_path, BAD_IMAGES[name][0])
    faults = [fault for verdict in Verifier(str(tmp_path)).run(1) for fault in verdict.faults]
    assert len(faults) == 2
    assert all(f"{BAD:02}/image.jpg: " in fault for fault in faults)
    assert all(BAD_IMAGES[name][1] in fault for fault in faults)


def shard_faults(folder):
    return [fault for verdict in Verifier(str(folder)).run(2) for fault in verdict.faults]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_byte_is_an_error_with_file_and_offset(shards, split):
    path = shards / f"{split}-00000-of-00001"
    data = bytearray(path.read_bytes())
    offset = len(data) - 40  # Within the last image.
    data[offset] ^= 4
    path.write_bytes(data)
    opened = open_shards(shards)
    read = read_evaluation if split == "validation" else lambda data: read_train(data, steps=4)
    with pytest.raises(UserError, match=rf"{path}: byte \d+: the checksum of a record's data"):
        read(opened)
    faults = shard_faults(shards)
    assert f"{path}: byte " in faults[0]
    assert "the checksum of a record's data does not match" in faults[0]
    assert "its checksum is not the one in dataset.json" in faults[1]
    assert len(faults) == 2


def test_a_flipped_byte_of_a_length_is_an_error_with_file_and_offset(shards):
    path = shards / "train-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path}: byte 0: the checksum of a record's length"):
        open_shards(shards)
    assert "checksum of a record's length" in shard_faults(shards)[0]


def record_ends(path):
    """The position behind each record, by the lengths alone."""
    data, ends, position = path.read_bytes(), [], 0
    while position < len(data):
        position += 16 + struct.unpack_from("<Q", data, position)[0]
        ends.append(position)
    return ends


@pytest.mark.parametrize(
    ("cut", "fault"),
    [
        ("record", "holds 11 examples in"),
        ("middle", "the file ends within a record"),
        ("header", "the file ends within a record's header"),
        ("all", "the shard is empty"),
    ],
)
def test_a_cut_shard_is_an_error_with_file_and_offset(shards, cut, fault):
    path = shards / "train-00000-of-00001"
    last = record_ends(path)[-2]
    size = {"record": last, "middle": last + 50, "header": last + 5, "all": 0}[cut]
    os.truncate(path, size)
    with pytest.raises(UserError, match=rf"{path}: byte \d+: .*{fault}"):
        open_shards(shards)
    faults = shard_faults(shards)
    assert any("dataset.json says 12" in line for line in faults)


def test_a_shard_that_shrinks_during_the_run_is_an_error(shards):
    data = open_shards(shards)
    path = shards / "train-00000-of-00001"
    os.truncate(path, record_ends(path)[4])
    with pytest.raises(UserError, match=rf"{path}: byte \d+: the file ends within a record"):
        read_train(data, steps=3)


def test_missing_shards_are_named(shards):
    (shards / "validation-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"the validation shards are not those that dataset.json"):
        open_shards(shards)
    assert shard_faults(shards) == [f"{shards}/validation-00000-of-00001: is missing"]
    (shards / "dataset.json").unlink()
    (shards / "train-00000-of-00001").rename(shards / "train-00000-of-00003")
    with pytest.raises(UserError, match="2 of 3 train shards are missing, first number 1"):
        open_shards(shards)


def test_a_class_that_can_not_be_listed_does_not_end_a_verification(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 2, "b": 3, "c": 2})
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / "0.png").write_bytes(b"text")
    scan = os.scandir

    def refuse(path):
        if path.endswith("/c"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    with monkeypatch.context() as patching:  # What removes `tmp_path` lists folders, too.
        patching.setattr(os, "scandir", refuse)
        verdicts = list(Verifier(str(tmp_path)).run(1))
    assert sum(verdict.examples for verdict in verdicts) == 5
    refused, empty, bad = (fault for verdict in verdicts for fault in verdict.faults)
    assert refused == f"{tmp_path}/c: cannot be listed (Permission denied)"
    assert empty.startswith(f"{tmp_path}/empty: a class without images")
    assert bad.startswith(f"{tmp_path}/b/0.png: neither JPEG, PNG, ")


def test_shards_of_a_split_that_dataset_json_does_not_name_are_refused(tmp_path):
    write_folder(tmp_path / "in", {"a": 4})
    convert.convert(str(tmp_path / "in"), str(tmp_path / "out"))
    name = "train-00000-of-00001"
    shutil.copy(tmp_path / "out" / name, tmp_path / "out" / name.replace("train", "validation"))
    with pytest.raises(UserError, match=r"the validation shards are not those that dataset\.json"):
        open_shards(tmp_path / "out")


def test_a_data_set_without_a_good_image_ends(tmp_path):
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "x.png").write_bytes(b"text")
    data = dataset.open_dataset(create_config(data_dir=str(tmp_path), max_bad_examples=9))
    with pytest.raises(UserError, match="not one image of the data set can be read"):
        read_train(data, steps=1)


def test_other_errors_are_not_the_streams(tmp_path):
    data = folder_data(tmp_path, "text", max_bad_examples=1)
    _, stream = read_batches(lambda: data.build_train(Worker(), seed=0), steps=1)
    assert stream.explain(tf.errors.UnavailableError(None, None, "network")) is None
    assert stream.explain(tf.errors.OutOfRangeError(None, None, "end")) is None
