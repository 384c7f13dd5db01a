"""scripts/make_tfrecords.py and scripts/verify_dataset.py, run as programs and as a library."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shared import process_tree, program

import make_tfrecords
import numpy as np
import pytest
import tensorflow as tf
import verify_dataset
from input_data import encode, noise, write_folder
from test_inputs_damage import big_png

from trainer.errors import UserError
from trainer.inputs.conversion import convert, shard_writer
from trainer.inputs.conversion.verify import Verifier
from trainer.process import files

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def command(name, *arguments):
    return [sys.executable, str(SCRIPTS / name), *map(str, arguments)]


def run(name, *arguments):
    return subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=300, check=False
    )


def hashes(folder):
    """A hash of every file that a reader of the data set looks at."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def examples_of(folder):
    """Returns what TensorFlow reads from the shards: {file name: features}."""
    found = {}
    for path in sorted(folder.glob("*-of-*")):
        for record in tf.data.TFRecordDataset(str(path)):
            features = tf.train.Example.FromString(record.numpy()).features.feature
            found[features["image/filename"].bytes_list.value[0].decode()] = features
    return found


def test_the_shards_hold_every_image_as_it_is(tmp_path):
    write_folder(tmp_path / "in" / "train", {"cat": 7, "dog": 9}, image_format="JPEG")
    write_folder(tmp_path / "in" / "validation", {"dog": 3})
    described = convert.convert(str(tmp_path / "in"), str(tmp_path / "out"), shard_bytes=3000)
    found = examples_of(tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "in")): p for p in (tmp_path / "in").rglob("*.*")}
    assert set(found) == set(files)
    for name, path in files.items():
        features = found[name]
        _, class_name, _ = name.split("/")
        assert features["image/encoded"].bytes_list.value[0] == path.read_bytes()
        assert features["image/class/label"].int64_list.value[0] == ["cat", "dog"].index(class_name)
        assert features["image/class/text"].bytes_list.value[0].decode() == class_name
        assert features["image/height"].int64_list.value[0] == 24
        assert features["image/width"].int64_list.value[0] == 20
        kind = b"JPEG" if name.endswith("jpeg") else b"PNG"
        assert features["image/format"].bytes_list.value[0] == kind
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["examples"] == {"train": 16, "validation": 3}
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["largest_image"] == [24, 20]
    assert len(manifest["splits"]["train"]) == len(described.splits["train"]) > 2
    assert not list((tmp_path / "out").glob(".*.receipt"))
    assert not [fault for v in Verifier(str(tmp_path / "out")).run(1) for fault in v.faults]


@pytest.mark.processes
def test_seed_and_place_decide_what_they_should(tmp_path):
    write_folder(tmp_path / "in", {"a": 20, "b": 20})
    options = {"validation_fraction": 0.2, "shard_bytes": 15_000}

    def shards(name, source="in", **more):
        convert.convert(str(tmp_path / source), str(tmp_path / name), **options, **more)
        found = hashes(tmp_path / name)
        found.pop("dataset.json")
        return found

    first = shards("one")
    assert len(first) > 3
    os.rename(tmp_path / "in", tmp_path / "moved")
    assert shards("two", source="moved") == first
    assert shards("three", source="moved", seed=1) != first


def test_it_runs_again_only_where_something_changed(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", {"a": 4})
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    first = convert.convert(source, out)
    with monkeypatch.context() as patch:
        patch.setattr(convert, "convert_shard", None)
        assert convert.convert(source, out) == first
    (tmp_path / "in" / "a" / "new.png").write_bytes(encode(noise(9)))
    assert convert.convert(source, out).splits["train"][0].examples == 5


def test_shards_that_were_lost_are_written_again_and_no_others(tmp_path):
    write_folder(tmp_path / "in", {"a": 20})
    (tmp_path / "in" / "a" / "bad.png").write_bytes(b"none")
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    options = {"shard_bytes": 5000, "max_bad": 1}
    described = convert.convert(source, out, **options)
    before = hashes(tmp_path / "out")
    missing, cut, *others = sorted((tmp_path / "out").glob("*-of-*"))
    kept = {path: path.stat().st_ino for path in others}
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    said = []
    assert convert.convert(source, out, **options, say=said.append) == described
    assert any(f"{missing.name} is missing or cut off (2 such shards)" in line for line in said)
    assert hashes(tmp_path / "out") == before
    # The shard without the image that cannot be read may be made anew, since its line is wanted.
    assert len([path for path, inode in kept.items() if path.stat().st_ino != inode]) <= 1
    assert not list((tmp_path / "out").glob(".*.receipt"))


def test_a_file_that_could_not_be_read_is_read_once_it_can_be(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", {"a": 4})
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    read = shard_writer.storage.read_file

    def refuse(path):
        if path.endswith(".png"):
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.storage, "read_file", refuse)
        with pytest.raises(UserError, match="4 files cannot be read"):
            convert.convert(source, out)
    assert convert.convert(source, out).splits["train"][0].examples == 4


def test_shards_of_other_options_do_not_stay_behind(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", {"a": 20})
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    convert.convert(source, out, shard_bytes=5000)
    described = convert.convert(source, out, shard_bytes=9000)
    names = sorted(path.name for path in (tmp_path / "out").glob("*-of-*"))
    assert names == [shard.file for shard in described.splits["train"]]
    # Likewise after a run that did not come to its end.
    monkeypatch.setattr(convert.manifest, "write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.convert(source, out, shard_bytes=5000)
    monkeypatch.undo()
    described = convert.convert(source, out, shard_bytes=9000)
    names = sorted(path.name for path in (tmp_path / "out").glob("*-of-*"))
    assert names == [shard.file for shard in described.splits["train"]]


def test_other_formats_become_png_and_names_do_not_matter(tmp_path):
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    pixels = noise(0)
    for name, image_format in (
        ("bitmap.jpg", "BMP"),
        ("tiff.png", "TIFF"),
        ("webp.jpeg", "WEBP"),
        ("png.JPEG", "PNG"),
        ("jpeg.png", "JPEG"),
    ):
        options = {"lossless": True} if image_format == "WEBP" else {}
        (folder / name).write_bytes(encode(pixels, image_format, **options))
    convert.convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found = {
        Path(name).name: f["image/encoded"] for name, f in examples_of(tmp_path / "out").items()
    }
    assert len(found) == 5
    for name, feature in found.items():
        data = feature.bytes_list.value[0]
        if name in ("png.JPEG", "jpeg.png"):
            assert data == (folder / name).read_bytes()
        else:
            np.testing.assert_array_equal(tf.io.decode_png(data).numpy(), pixels)


def test_unreadable_files_are_reported_and_too_many_fail(tmp_path):
    write_folder(tmp_path / "in", {"a": 6})
    bad = {
        "text.jpg": b"hello",
        "cut.jpg": encode(noise(0, 64, 64), "JPEG")[:900],
        "big.png": big_png(),
        "link.png": None,
    }
    for name, data in bad.items():
        if data is None:
            (tmp_path / "in" / "a" / name).symlink_to("nowhere.png")
        else:
            (tmp_path / "in" / "a" / name).write_bytes(data)
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    with pytest.raises(UserError, match="--max_bad: 4 files cannot be read, where 3 are allowed"):
        convert.convert(source, out, max_bad=3)
    assert not (tmp_path / "out" / "dataset.json").exists()
    described = convert.convert(source, out, max_bad=4)
    assert described.splits["train"][0].examples == 6
    report = (tmp_path / "out" / "unreadable.txt").read_text()
    assert all(name in report for name in bad)
    assert len(report.splitlines()) == 4
    assert "40000 x 40000 pixels" in report


def test_two_converters_do_not_share_a_folder(tmp_path):
    write_folder(tmp_path / "in", {"a": 1})
    with (
        convert._alone_in(str(tmp_path / "out")),
        pytest.raises(UserError, match="another converter is writing"),
    ):
        convert.convert(str(tmp_path / "in"), str(tmp_path / "out"))


def has_child_with_numpy(pid):
    maps = [Path(f"/proc/{child}/maps") for child in process_tree.children_of(pid)]
    return any("numpy" in path.read_text() for path in maps if path.exists())


@pytest.mark.processes
def test_killed_and_started_again_it_ends_as_if_undisturbed(tmp_path, capsys, monkeypatch):
    """With two processes, and at last with one: their number changes nothing."""
    folder = tmp_path / "in"
    images = [encode(noise(number, 40, 40), "JPEG") for number in range(50)]
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(300):
            # A comment makes each file another one.
            data = images[number % 50]
            comment = b"\xff\xfe\x00\x06" + number.to_bytes(4, "big")
            (folder / str(label) / f"{number}.jpg").write_bytes(data[:2] + comment + data[2:])
    options = ("--images", folder, "--shard_mb", 0.12)
    convert.convert(str(folder), str(tmp_path / "one"), shard_bytes=round(0.12 * 2**20))
    expected = hashes(tmp_path / "one")
    assert len(expected) > 20

    out = tmp_path / "two"
    for number, receipts in ((signal.SIGINT, 0), (signal.SIGKILL, 5), (signal.SIGINT, 20)):
        process = subprocess.Popen(
            command("make_tfrecords.py", *options, "--out", out, "--processes", 2),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # The first Ctrl-C comes while the two begin: one has loaded numpy, but not all modules.
        while (
            len(list(out.glob(".*.receipt"))) < receipts
            if receipts
            else not has_child_with_numpy(process.pid)
        ):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, number)
        said = process.communicate()[1]
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert said == "make_tfrecords.py: interrupted\n"
            assert len(list(out.glob(".*.receipt"))) < len(expected) - 5
    receipts = [path.name[1:].removesuffix(".receipt") for path in out.glob(".*.receipt")]
    finished = {name: (out / name).stat().st_mtime_ns for name in receipts}
    assert finished
    assert not (out / "dataset.json").exists()
    again = run_here(make_tfrecords, capsys, monkeypatch, *options, "--out", out, "--processes", 1)
    assert again.returncode == 0, again.stderr
    assert "train: 3000 images of 10 classes" in again.stdout
    assert hashes(out) == expected
    assert not list(out.glob(f".*{files.SUFFIX}"))
    # What was finished was not written again.
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in finished.items())


def run_here(script, capsys, monkeypatch, *arguments):
    """Runs a script as its last line does, in this process, which has TensorFlow loaded."""
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        program.run(script.main)
    said = capsys.readouterr()
    if isinstance(ended.value.code, str):  # Python prints it and exits with status 1.
        return subprocess.CompletedProcess(sys.argv, 1, said.out, f"{said.err}{ended.value}\n")
    return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, said.out, said.err)


@pytest.mark.processes
def test_the_programs_say_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    def make(*arguments):
        return run_here(make_tfrecords, capsys, monkeypatch, *arguments)

    def verify(*arguments):
        return run_here(verify_dataset, capsys, monkeypatch, *arguments)

    result = run("make_tfrecords.py", "--images", tmp_path / "none", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("make_tfrecords.py: --images: must be a folder that exists")
    assert result.stderr.count("\n") == 1
    write_folder(tmp_path / "in", {"a": 3, "b": 2})
    (tmp_path / "in" / "a" / "t.jpg").write_bytes(b"text")
    for name, reason in (("file", "File exists"), ("file/out", "Not a directory")):
        (tmp_path / "file").touch()
        result = make("--images", tmp_path / "in", "--out", tmp_path / name)
        told = f"--out: must be writable, got {tmp_path}/{name} ({reason})"
        assert result.stderr == f"make_tfrecords.py: {told}\n"
    result = make("--images", tmp_path / "in", "--out", tmp_path / "out", "--processes", 1)
    assert result.returncode == 1
    assert "--max_bad: 1 files cannot be read, where 0 are allowed" in result.stderr
    result = run("verify_dataset.py", "--data_dir", tmp_path / "in")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        f"{tmp_path}/in/a/t.jpg: neither JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF nor JPEG 2000: it "
        "begins with b'text'",
        "train: 6 examples",
        "1 faults",
    ]
    (tmp_path / "in" / "a" / "t.jpg").unlink()
    result = make("--images", tmp_path / "in", "--out", tmp_path / "out", "--processes", 1)
    assert result.returncode == 0
    result = verify("--data_dir", tmp_path / "out")
    assert (result.returncode, result.stdout) == (0, "train: 5 examples\nno faults\n")
    (shard,) = (tmp_path / "out").glob("*-of-*")
    shard.unlink()
    shard.symlink_to(tmp_path / "vanished")
    result = verify("--data_dir", tmp_path / "out")
    assert result.returncode == 1
    assert str(shard) in result.stdout
    assert "Traceback" not in result.stderr
