"""Folders, plug-ins, caches and remote files."""

import collections
import os
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from input_data import (
    Numbered,
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
from trainer.errors import ConfigError, UserError
from trainer.inputs import class_names, dataset, source
from trainer.inputs.conversion import convert
from trainer.inputs.images import reader
from trainer.inputs.source import Source
from trainer.inputs.sources import listing, storage
from trainer.machine import free_memory


def open_dataset(path=None, **fields):
    return dataset.open_dataset(create_config(data_dir=path and str(path), **fields))


def counted(batches):
    return collections.Counter(labels_of(batches).tolist())


def test_a_folder_with_splits_is_read(tmp_path):
    write_folder(tmp_path / "train", {"b": 3, "a": 2}, image_format="JPEG")
    write_folder(tmp_path / "validation", {"b": 5})
    data = open_dataset(tmp_path)
    assert data.info[:5] == ("folder", 5, 5, 2, ("a", "b"))
    assert counted(read_train(data, steps=5)) == {0: 8, 1: 12}
    labels = [label for b in read_evaluation(data) for label in b.labels[b.weights == 1]]
    assert labels == [1] * 5


def test_one_level_is_split_by_classes_and_always_alike(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 20, "c": 6})
    data = open_dataset(tmp_path, validation_fraction=0.25)
    train, validation = data._source.train, data._source.validation
    assert np.bincount(validation.labels).tolist() == [3, 5, 1]  # 2.5, 5 and 1.5: 9 in all.
    assert not set(train._paths) & set(validation._paths)
    assert len(train._paths) + len(validation._paths) == 36
    again = open_dataset(tmp_path, validation_fraction=0.25)
    assert again._source.validation._paths == validation._paths
    # Another image moves none of the others, up to the count that it changes.
    (tmp_path / "b" / "new.png").write_bytes(encode(noise(0)))
    grown = open_dataset(tmp_path, validation_fraction=0.25)._source.validation._paths
    assert len(set(validation._paths) - set(grown)) <= 1


@pytest.mark.parametrize("count", [10, 1797])
def test_the_number_held_out_is_the_fraction_rounded_up(count):
    sizes = [count // 3, count // 2, count - count // 3 - count // 2]
    counts = listing.split_counts(sizes, 0.2)
    assert sum(counts) == -(-count // 5)
    assert all(abs(n - 0.2 * size) < 1 for n, size in zip(counts, sizes, strict=True))


@pytest.mark.slow
def test_names_with_spaces_unicode_and_a_leading_dash_are_read(tmp_path):
    names = ["-rf", "a class", "größe", "猫", "naïve\u0301", 'quote"s', "new\nline"]
    for number, name in enumerate(names):
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in (f"{name}.PNG", "-o.png"):
            (tmp_path / "train" / name / file).write_bytes(encode(noise(number)))
    os.mkdir(os.fsencode(tmp_path) + b"/train/latin\xe9")
    with open(os.fsencode(tmp_path) + b"/train/latin\xe9/\xff.jpg", "wb") as file:
        file.write(encode(noise(9)))
    data = open_dataset(tmp_path)
    assert data.info.num_train_examples == 15
    assert set(data.info.class_names) == {*names, "latin\udce9"}
    described = convert.convert(str(tmp_path), str(tmp_path / "out"))
    assert described.classes == data.info.class_names
    shards = open_dataset(tmp_path / "out")
    assert shards.info.class_names == data.info.class_names
    assert counted(read_train(shards, steps=15)) == counted(read_train(data, steps=15))


@pytest.mark.parametrize("place", ["file", "class", "split"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, place):
    write_folder(tmp_path / "outside" / "train", {"a": 1})
    outside = tmp_path / "outside" / "train"
    root = tmp_path / "data"
    write_folder(root / "train", {"b": 1})
    if place == "split":
        (root / "validation").symlink_to(outside)
    else:
        target = outside / "a" if place == "class" else outside / "a" / "0.png"
        (root / "train" / "b" / "l.png" if place == "file" else root / "train" / "l").symlink_to(
            target
        )
    with pytest.raises(UserError, match=r"a link out of the data set's folder"):
        open_dataset(root)
    with pytest.raises(UserError, match=r"a link out of the data set's folder"):
        convert.convert(str(root), str(tmp_path / "out"))


def test_links_within_the_folder_and_to_it_are_followed(tmp_path):
    write_folder(tmp_path / "data" / "train", {"b": 1})
    (tmp_path / "data" / "train" / "b" / "l.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert open_dataset(tmp_path / "link").info.num_train_examples == 2


@pytest.mark.parametrize("name", ["../up", "..", ""])
def test_a_manifest_with_a_class_out_of_the_folder_is_refused(tmp_path, name):
    write_folder(tmp_path / "images", {"a": 1})
    convert.convert(str(tmp_path / "images"), str(tmp_path / "out"))
    path = tmp_path / "out" / "dataset.json"
    text = path.read_text()
    path.write_text(text.replace('"a"', f'"{name}"'))
    with pytest.raises(
        UserError, match=r"dataset.json: not a manifest .* is not the name of a class"
    ):
        open_dataset(tmp_path / "out")
    path.write_text(text.replace('"train-00000', '"../train-00000'))
    with pytest.raises(UserError, match=r"is not the name of a file in this folder"):
        open_dataset(tmp_path / "out")
    path.write_text("{")
    with pytest.raises(UserError, match=r"dataset.json: not a manifest"):
        open_dataset(tmp_path / "out")


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--data_dir: must be a folder that exists"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match=r"has no images in one folder per class"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"has no shards named like train-00000-of-01024"):
        open_dataset(tmp_path, dataset="tfrecord")
    (tmp_path / "train" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "train" / "a" / "1.pipe")  # It is not opened, which would not end.
    for name, data, told in (
        (".hidden", b"\xff\xd8", "or put its images there; a --logdir belongs elsewhere"),
        ("0.JXL", b"\xff\x0a", "0.JXL is a JPEG XL, which is not read: save such files as JPEG or"),
        ("0.HEIC", b"\0\0\0\x18ftypheic", "0.HEIC is a HEIC, which is not read: save such files"),
        ("0", encode(noise(0)), "0 is a PNG: give it a name that ends in .png"),
    ):
        (tmp_path / "train" / "a" / name).write_bytes(data)
        with pytest.raises(UserError, match=f"train/a: a class without images .*{told}"):
            open_dataset(tmp_path)
    (tmp_path / "train" / "a" / "0.png").write_bytes(encode(noise(0)))
    write_folder(tmp_path / "validation", {"z": 1})
    with pytest.raises(UserError, match=r"validation/z: a class that .*train does not have"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"--validation_fraction: must not be given"):
        open_dataset(tmp_path, validation_fraction=0.5)


def test_a_data_set_without_validation_cannot_be_evaluated(tmp_path):
    write_folder(tmp_path, {"a": 2})
    data = open_dataset(tmp_path)
    assert data.info.num_validation_examples == 0
    with pytest.raises(UserError, match=r"has no validation examples"):
        data.build_evaluation(Worker())


def test_synthetic_data_is_one_batch_that_differs_between_workers():
    data = dataset.open_dataset(create_config(), num_classes=5)
    assert data.info[:4] == ("synthetic", 1_281_167, 0, 5)
    first, second = read_train(data, worker=Worker(1, 2), steps=2)
    other = read_train(data, worker=Worker(0, 2), steps=1)[0]
    np.testing.assert_array_equal(first.images, second.images)
    assert (first.images != other.images).any()
    assert first.images.dtype == np.uint8
    assert first.images.min() < 5 < 250 < first.images.max()
    assert set(first.labels) <= set(range(5))
    with pytest.raises(UserError, match=r"synthetic has nothing to evaluate on"):
        data.build_evaluation(Worker())


@pytest.mark.parametrize(
    ("known", "names"),
    [
        (None, ["0", "1", "2"]),
        (("a",), ["a", "1", "2"]),
        (("a", "b", "c", "d"), ["a", "b", "c"]),
    ],
)
def test_a_class_without_a_name_is_its_number(known, names):
    assert class_names.name_classes(known, 3) == names
    info = dataset.DatasetInfo("d", 1, 0, 3, known, "")
    assert info.names_of_classes == names


def open_numbered(config):
    """A plug-in."""
    assert config.image_size == 8
    return Source("numbers", Numbered(6), None, None, None, "one")


def test_a_plug_in_is_found_by_name():
    name = f"{__name__}:open_numbered"
    data = dataset.open_dataset(create_config(dataset=name))
    assert data.info[:4] == ("numbers", 6, 0, 6)
    assert counted(read_train(data, steps=3)) == dict.fromkeys(range(6), 2)


def test_the_documented_plug_in_works(tmp_path, monkeypatch):
    lines = source.__doc__.split(":\n\n")[1].splitlines()
    imports = "import pathlib\nimport numpy as np\nfrom trainer.inputs.source import Source\n"
    (tmp_path / "flags_plug_in.py").write_text(imports + textwrap.dedent("\n".join(lines)))
    monkeypatch.syspath_prepend(tmp_path)
    for label in range(3):
        (tmp_path / f"{label}.png").write_bytes(encode(noise(label)))
    data = open_dataset(tmp_path, dataset="flags_plug_in:open_flags")
    assert data.info[:4] == ("flags", 3, 0, 10)
    assert counted(read_train(data, steps=3)) == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize(
    "module",
    ["trainer.inputs.source", pytest.param("trainer.inputs.encoded", marks=pytest.mark.slow)],
)
def test_a_plug_in_says_that_an_image_is_bad(tmp_path, monkeypatch, module):
    (tmp_path / "bad_plug_in.py").write_text(
        f"from {module} import BadImageError\n"
        "from trainer.inputs.source import Source\n"
        "from input_data import Numbered\n"
        "class Bad(Numbered):\n"
        "    def read(self, example):\n"
        "        if example == 3:\n"
        "            raise BadImageError('no pixels today')\n"
        "        return super().read(example)\n"
        "def open_bad(config):\n"
        "    return Source('bad', Bad(6), None, None, None, 'one')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_plug_in", raising=False)
    name = "bad_plug_in:open_bad"
    refused = dataset.open_dataset(create_config(dataset=name))
    with pytest.raises(UserError, match=r"^example 3: a bad image: no pixels today\."):
        read_train(refused, steps=2)
    allowed = dataset.open_dataset(create_config(dataset=name, max_bad_examples=1))
    assert set(labels_of(read_train(allowed, steps=3)).tolist()) == {0, 1, 2, 4, 5}


@pytest.mark.parametrize("name", ["nothing", "no_module:f", f"{__name__}:no_function", ":", "a:"])
def test_a_plug_in_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=r"--dataset: must "):
        dataset.open_dataset(create_config(dataset=name))


@pytest.mark.slow
@pytest.mark.parametrize("cache", [pytest.param("encoded", marks=pytest.mark.slow), "decoded"])
def test_a_cache_changes_nothing_but_the_reads(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("trainer.inputs.pipeline.count_threads", lambda _: 2)
    write_folder(tmp_path, {"a": 5, "b": 4}, image_format="JPEG")
    plain, cached = (
        open_dataset(tmp_path, cache=kind, validation_fraction=0.3, augment=augment)
        for kind, augment in (("none", "shift"), (cache, "shift"))
    )
    reads = collections.Counter()
    for split in (cached._source.train, cached._source.validation):
        split.read = lambda example, r=split.read: reads.update([example]) or r(example)
    for one, other in zip(read_train(plain, steps=6), read_train(cached, steps=6), strict=True):
        for part, other_part in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, other_part)
    # Six to estimate the memory, six to fill it; a chunk that is under way may read one twice.
    assert reads.total() <= 12 + 6


def test_a_cache_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 10})
    monkeypatch.setattr(free_memory, "available_bytes", lambda: 20_000)
    data = open_dataset(tmp_path, cache="decoded")
    assert 24 * 20 * 3 * 10 < 20_000 < 2 * 24 * 20 * 3 * 10
    with tf.Graph().as_default():
        data.build_train(Worker(), seed=0)
        data = open_dataset(tmp_path, cache="decoded")
        with pytest.raises(ConfigError, match=r"--cache: decoded images need about .* 2 workers"):
            data.build_train(Worker(0, 2, 0, 2), seed=0)


def test_caches_of_both_splits_have_to_fit_together(tmp_path, monkeypatch):
    for split in ("train", "validation"):
        write_folder(tmp_path / split, {"a": 10})
    monkeypatch.setattr(free_memory, "available_bytes", lambda: 20_000)
    data = open_dataset(tmp_path, cache="decoded")
    with tf.Graph().as_default():
        data.build_train(Worker(), seed=0)
        with pytest.raises(ConfigError, match=r"--cache: decoded images need about .* 1 workers"):
            data.build_evaluation(Worker())


def test_bad_images_are_not_cached(tmp_path):
    write_folder(tmp_path, {"a": 5})
    (tmp_path / "a" / "3.png").write_bytes(encode(noise(3, 64, 64))[:-300])
    data = open_dataset(tmp_path, cache="decoded", max_bad_examples=1)
    batches, stream = read_batches(lambda: data.build_train(Worker(), seed=0), steps=4)
    assert stream.bad_examples() == 1
    assert len(batches) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tfrecord"])
def test_files_with_a_scheme_are_read_by_tensorflow(tmp_path, kind, monkeypatch):
    write_folder(tmp_path / "images", {"a": 30, "b": 30})
    local = tmp_path / "images"
    if kind == "tfrecord":
        local = tmp_path / "shards"
        convert.convert(str(tmp_path / "images"), str(local), shard_bytes=20_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert storage.is_remote(f"file://{local}")
    near = open_dataset(local, shuffle_block={"folder": 1, "tfrecord": 16}[kind])
    far = open_dataset(f"file://{local}")
    assert far.info == near.info
    for one, other in zip(read_train(near, steps=20), read_train(far, steps=20), strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_images_are_named_once_in_the_log(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 4})
    (tmp_path / "a" / "2.png").write_bytes(b"")
    lines = []
    monkeypatch.setattr(reader.logging, "warning", lambda text, *args: lines.append(text % args))
    read_train(open_dataset(tmp_path, max_bad_examples=3), steps=6)
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path}/a/2.png: a bad image: 0 bytes.")


def test_files_that_cannot_be_opened_are_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "images", {"a": 2})
    convert.convert(str(tmp_path / "images"), str(tmp_path / "out"))

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    for name in ("list_folder", "file_state", "map_file"):
        with monkeypatch.context() as patch:
            patch.setattr(storage, name, refuse)
            with pytest.raises(UserError, match=r"/out.*: cannot be read \(Permission denied\)"):
                open_dataset(tmp_path / "out")
    with pytest.raises(UserError, match=r"--data_dir: must be a folder|cannot be read"):
        open_dataset("nowhere://bucket/data")
