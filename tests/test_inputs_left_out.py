"""Folders as people have them: which images are read, and that the rest is told."""

import errno
import os
import re

import pytest
from input_data import encode, noise, write_folder

from trainer.config import DataConfig
from trainer.errors import UserError
from trainer.inputs.conversion import convert
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.dataset import open_dataset
from trainer.inputs.sources import folder, listing, shards

IMAGE = encode(noise(0))


def write(root, *names):
    """Writes images, or whatever ends in another way, of these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)


def read(root, **fields):
    return folder.open_folder(DataConfig(data_dir=str(root), **fields))


def counts(source):
    return {
        name: len(split.labels)
        for name, split in (("train", source.train), ("validation", source.validation))
        if split is not None
    }


def left_out(remarks):
    """The number of files that remarks name as left out: of each reason, and in all."""
    (line,) = remarks
    total = int(re.match(r"(\d+) files? (?:is|are) left out: ", line)[1])
    parts = [int(each) for each in re.findall(r"(?:: |; )(\d+) ", line)]
    assert sum(parts) == total
    return total


ODD = [
    *(f"train/a/{name}" for name in ("0.png", "1.JPG", "2.jpeg", "3.jfif", "4.jpe", "5.Png")),
    *(f"train/b/{name}" for name in ("0.png", "a.heic", "b.avif", "c.ppm", "d.jp2", "e")),
    *(f"train/b/{name}" for name in ("inner/0.png", "inner/deep/1.png", ".hidden.png", "t.txt")),
    *("train/0.png", "train/1.png", "train/labels.csv", "README.md", ".DS_Store", "2.png"),
    *("train/@eaDir/0.png", "train/__MACOSX/a/0.png", "lost+found/x", "train/.git/config"),
    *("val/a/0.png", "val/a/v.heif", "test/a/0.png", "test/1.png", "Validation/a/0.png"),
]


def test_what_is_read_and_what_is_left_out_is_all_there_is(tmp_path):
    """In the trainer, in make_tfrecords.py and in verify_dataset.py alike."""
    write(tmp_path / "D", *ODD)
    source = read(tmp_path / "D")
    assert counts(source) == {"train": 9, "validation": 1}
    assert left_out(source.remarks) == len(ODD) - 10
    for told in ("*.heic", "within a class", "beside the folders of", "in test/", "in Validation/"):
        assert told in source.remarks[0]
    verifier = Verifier(str(tmp_path / "D"))
    assert verifier.remarks == source.remarks
    assert sum(verdict.examples for verdict in verifier.run(1)) == 10
    said = []
    described = convert.convert(str(tmp_path / "D"), str(tmp_path / "out"), say=said.append)
    assert tuple(said) == source.remarks
    assert sum(shard.examples for part in described.splits.values() for shard in part) == 10


def test_a_tidy_folder_has_no_remarks(tmp_path):
    write(tmp_path, "train/a/0.png", "validation/a/0.png")
    assert read(tmp_path).remarks == ()


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_validation_data_has_three_names(tmp_path, name):
    write(tmp_path, "train/a/0.png", "train/b/0.png", f"{name}/b/0.png")
    source = read(tmp_path)
    assert counts(source) == {"train": 2, "validation": 1}
    assert source.validation.labels.tolist() == [1]
    write(tmp_path, f"{name}/c/0.png")
    with pytest.raises(UserError, match=f"{name}/c: a class that .*train does not have"):
        read(tmp_path)


def test_two_folders_of_one_split_are_refused(tmp_path):
    write(tmp_path, "train/a/0.png", "val/a/0.png", "validation/a/0.png")
    with pytest.raises(UserError, match="has validation and val, which are the same split"):
        read(tmp_path)


@pytest.mark.parametrize("names", [("train", "dog"), ("val", "dog"), ("test", "train", "cat")])
def test_a_class_may_have_the_name_of_a_split(tmp_path, names):
    write(tmp_path, *(f"{name}/0.png" for name in names))
    assert read(tmp_path).class_names == tuple(sorted(names))


@pytest.mark.parametrize("names", [("train",), ("train", "test"), ("Train", "Validation")])
def test_parts_of_a_data_set_are_no_classes(tmp_path, names):
    write(tmp_path, *(f"{name}/{number}.png" for name in names for number in range(2)))
    count = 2 * len(names)
    told = rf"has no images in one folder per class .*; {count} files are left out: {count} without"
    with pytest.raises(UserError, match=f"{told} a folder of their class .*/0.png, "):
        read(tmp_path)


def test_pictures_without_folders_and_folders_of_folders_are_told_where_they_belong(tmp_path):
    write(tmp_path / "flat", "0.png", "1.png", "notes.txt")
    with pytest.raises(UserError, match=r"jpg\); 3 files are left out: 2 beside the .*/flat/0.png"):
        read(tmp_path / "flat")
    write(tmp_path / "outer", "photos/a/0.png", "photos/b/0.png")
    inner = tmp_path / "outer" / "photos"
    with pytest.raises(UserError, match=rf"{inner}: a class without .*, give {inner} as the"):
        read(tmp_path / "outer")
    assert read(inner).class_names == ("a", "b")


@pytest.mark.parametrize("what", ["a link to nothing", "a file"])
def test_train_has_to_be_a_folder(tmp_path, what):
    write(tmp_path, "validation/a/0.png", "b/0.png")
    if what == "a file":
        (tmp_path / "train").touch()
    else:
        (tmp_path / "train").symlink_to(tmp_path / "absent")
    for reader in (read, lambda root: Verifier(str(root)), lambda root: convert.convert(root, "o")):
        with pytest.raises(UserError, match=f"train: must be a folder .* is {what}"):
            reader(tmp_path)


def test_validation_data_alone_can_be_evaluated(tmp_path):
    write(tmp_path / "parts", "validation/a/0.png", "validation/b/0.png")
    assert counts(read(tmp_path / "parts")) == {"validation": 2}
    write(tmp_path / "flat", "a/0.png", "b/0.png")
    assert counts(read(tmp_path / "flat", validation_fraction=1.0)) == {"validation": 2}
    assert counts(read(tmp_path / "flat")) == {"train": 2}


def test_a_classs_last_image_is_never_held_out(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1, "c": 1, "d": 10})
    source = read(tmp_path, validation_fraction=0.5)
    assert counts(source) == {"train": 7, "validation": 6}
    assert source.validation.labels.tolist() == [3] * 6
    assert set(source.train.labels) == {0, 1, 2, 3}
    assert source.remarks == (
        "3 classes have no validation image, with too few for --validation_fraction",
    )
    write_folder(tmp_path / "small", {"a": 1, "b": 1})
    with pytest.raises(UserError, match=r"no class in .* has an image to spare"):
        read(tmp_path / "small", validation_fraction=0.9)


def test_links_out_of_the_folder_are_followed_where_that_is_asked(tmp_path):
    write(tmp_path / "all", "a/0.png", "a/1.png", "b/0.png")
    (tmp_path / "some" / "b").mkdir(parents=True)
    (tmp_path / "some" / "a").symlink_to(tmp_path / "all" / "a")
    (tmp_path / "some" / "b" / "0.png").symlink_to(tmp_path / "all" / "b" / "0.png")
    with pytest.raises(UserError, match="--follow_links"):
        read(tmp_path / "some")
    assert counts(read(tmp_path / "some", follow_links=True)) == {"train": 3}


def test_one_folder_is_the_same_data_however_it_is_written(tmp_path, monkeypatch):
    write(tmp_path, "D/a/0.png", "D/b/0.png")
    monkeypatch.chdir(tmp_path)
    infos = {
        open_dataset(DataConfig(data_dir=path)).info
        for path in ("D", "D/", "./D", "D//", ".//D/./")
    }
    assert len(infos) == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001", "train"),
        ("val-00000-of-00001", "validation"),
        ("valid_00000-of-00001.tfrecord", "validation"),
        ("imagenet2012-train.tfrecord-00000-of-00001", "train"),
        ("imagenet2012-validation.tfrecord-00000-of-00001", "validation"),
        ("val/validation-00000-of-00001", "validation"),
    ],
)
def test_shards_have_these_names(tmp_path, name, split):
    write(tmp_path, name)
    found = shards.find_shards(str(tmp_path))
    assert found == ({split: [str(tmp_path / name)]}, ())


def test_shards_of_other_splits_are_named(tmp_path):
    write(
        tmp_path, "train-00000-of-00001", "test-00000-of-00002", "test-00001-of-00002", "a.tfrecord"
    )
    (remark,) = shards.find_shards(str(tmp_path)).remarks
    assert remark.startswith("3 files are left out: 3 of another split or name (")


def test_hidden_files_have_no_say(tmp_path):
    write(tmp_path, "a/0.png", "a/.0.png")
    said = listing.list_images(str(tmp_path), 0.0).remarks
    assert said == (f"1 file is left out: 1 hidden ({tmp_path}/a/.0.png)",)


def test_what_is_not_read_can_not_stop_a_run(tmp_path, monkeypatch):
    """A folder that may not be listed, and links to folders that may have no end."""
    write(tmp_path / "D", "train/a/0.png", "secret/0.png", "lost+found/0.png")
    write(tmp_path / "elsewhere", *(f"{number}.png" for number in range(50)))
    for name in ("D/link", "D/train/.link", "D/train/a/link"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    scan = os.scandir

    def refuse(path):
        if path.endswith(("secret", "lost+found")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = read(tmp_path / "D")
    assert counts(source) == {"train": 1}
    assert left_out(source.remarks) == 5


def test_a_folder_that_may_be_a_class_or_a_split_is_refused(tmp_path):
    write(tmp_path, "train/0.png", "train/old/0.png", "test/0.png", "docs/readme.txt")
    assert counts(read(tmp_path)) == {"train": 1}
    write(tmp_path, "cat/0.png")
    assert counts(read(tmp_path)) == {"train": 1}
    write(tmp_path, "dog/0.png")
    with pytest.raises(UserError, match=r"/train: has images, as the class cat beside it, and fol"):
        read(tmp_path)
