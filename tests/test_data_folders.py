"""Data sets: what is taken for one, how it is shuffled, and what becomes of one that is there."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

from shared import process_tree

import google_crc32c
import pytest
from input_data import write_folder
from processes import environment

from trainer.config import DataConfig
from trainer.errors import UserError
from trainer.inputs import dataset
from trainer.inputs.conversion import convert, verify
from trainer.inputs.conversion.rewrite import Rewriting
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.sources import index, shards


def converted(tmp_path, classes=("a", "b")):
    write_folder(tmp_path / "in", dict.fromkeys(classes, 3))
    out = tmp_path / "out"
    convert.convert(str(tmp_path / "in"), str(out), shard_bytes=500)
    return out


def faults_in(folder):
    return [fault for verdict in Verifier(str(folder)).run(2) for fault in verdict.faults]


def test_hidden_files_are_no_shards(tmp_path):
    """macOS writes a ._file beside each file where a disk has no place for its attributes."""
    out = converted(tmp_path)
    expected = shards.find_shards(str(out))
    for path in expected.splits["train"]:
        name = os.path.basename(path)
        (out / f"._{name}").write_bytes(b"\0\5\x16\7")
    assert shards.find_shards(str(out)) == expected
    first = os.path.basename(expected.splits["train"][0])
    (out / f"old-{first}").touch()
    with pytest.raises(UserError, match=rf"shard 0 of train twice. Remove one: .*{first} or .*"):
        shards.find_shards(str(out))


def test_shards_that_are_all_gone_are_told(tmp_path):
    out = converted(tmp_path)
    paths = shards.find_shards(str(out)).splits["train"]
    for path in paths:
        os.unlink(path)
    assert faults_in(out) == [f"{path}: is missing" for path in paths]


def test_a_shards_checksum_is_that_of_all_its_pieces(tmp_path, monkeypatch):
    out = converted(tmp_path)
    assert faults_in(out) == []
    monkeypatch.setattr(verify, "_PIECE_BYTES", 7)
    assert faults_in(out) == []
    content = os.urandom(50)
    assert verify._checksum(memoryview(content)) == google_crc32c.value(content)


def test_another_programs_dataset_json_makes_no_shards_of_a_folder(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["a/0.png", 0]]}))
    assert dataset.open_dataset(DataConfig(data_dir=str(tmp_path))).info.name == "folder"
    assert faults_in(tmp_path) == []
    (tmp_path / "dataset.json").write_text('{"format": "slim-horovod dataset')  # Cut off.
    with pytest.raises(UserError, match=r"dataset.json: not a manifest that this version reads"):
        dataset.open_dataset(DataConfig(data_dir=str(tmp_path)))


def test_shards_beside_another_programs_dataset_json_are_read(tmp_path):
    out = converted(tmp_path)
    (out / "dataset.json").write_text("{}")
    assert faults_in(out) == []
    config = DataConfig(data_dir=str(out), label_offset=0)
    assert dataset.open_dataset(config).info.num_train_examples == 6


def test_an_index_that_is_good_in_one_place_is_not_missed_in_another(tmp_path, monkeypatch):
    """Beside data that can't be written lies one of earlier shards."""
    out = converted(tmp_path)
    paths = shards.find_shards(str(out)).splits["train"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, cached = index._cache_paths(paths, "train")
    index.load_index(paths, split="train")
    os.rename(beside, cached)
    with open(beside, "wb") as file:
        file.write(b"of others")
    said = []
    monkeypatch.setattr(index.logging, "warning", lambda text, *args: said.append(text % args))
    index.load_index(paths, split="train")
    assert said == []
    os.unlink(cached)
    index.load_index(paths, split="train")
    assert said == [f"{beside}: is damaged, or of an earlier version: the shards are scanned anew"]


def test_a_data_set_is_replaced_with_a_word_and_another_one_never(tmp_path):
    out, said = converted(tmp_path), []
    write_folder(tmp_path / "in", {"c": 3})
    convert.convert(str(tmp_path / "in"), str(out), say=said.append)
    assert said == [
        f"{out}: its shards are of other files, options or another version: they are replaced"
    ]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_folder(tmp_path / "others", {"x": 3, "y": 3})
    with pytest.raises(UserError, match=r"--out: .*out holds another data set, of which a is a"):
        convert.convert(str(tmp_path / "others"), str(out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(("shorter_side", "is_renewed"), [(None, False), (8, True)])
def test_a_new_rule_for_smaller_images_renews_them_alone(
    tmp_path, monkeypatch, shorter_side, is_renewed
):
    write_folder(tmp_path / "in", {"a": 2})
    out, said = str(tmp_path / "out"), []
    rewriting = Rewriting(shorter_side)
    convert.convert(str(tmp_path / "in"), out, rewriting=rewriting)
    monkeypatch.setattr(convert, "_RULES_OF_SMALLER", "next")
    convert.convert(str(tmp_path / "in"), out, rewriting=rewriting, say=said.append)
    assert any("another version: they are replaced" in line for line in said) == is_renewed


@pytest.mark.processes
def test_what_a_killed_converter_has_started_ends_with_it(tmp_path):
    write_folder(tmp_path / "in", {"a": 200})
    script = [sys.executable, "scripts/make_tfrecords.py", "--images", str(tmp_path / "in")]
    script += ["--out", str(tmp_path / "out"), "--shard_mb=0.001", "--processes=2"]
    converter = subprocess.Popen(script, env=environment(), stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob(".*.receipt")):
        assert converter.poll() is None
        time.sleep(0.02)
    started = [pid for pid in process_tree.children_of(converter.pid) if _is_converting(pid)]
    assert started
    converter.send_signal(signal.SIGKILL)
    converter.wait()
    end_sec = time.monotonic() + 60
    while any(_is_converting(pid) for pid in started):
        assert time.monotonic() < end_sec
        time.sleep(0.05)


def _is_converting(pid):
    """Returns whether a process is there and of the pool, not what watches over its resources."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"spawn_main" in file.read()
    except OSError:
        return False


def _prepare_digits(folder):
    import prepare_digits

    prepare_digits.prepare(folder)


@pytest.mark.processes
def test_two_first_runs_prepare_the_digits_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_prepare_digits, args=(str(tmp_path / "d"),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert dataset.open_dataset(DataConfig(data_dir=str(tmp_path / "d"))).info[:4] == (
        *("tfrecord", 1437, 360, 10),
    )


def test_neighbours_of_a_folder_are_of_one_class_and_not_kept_together(tmp_path):
    write_folder(tmp_path / "in", {"a": 3, "b": 3})
    config = DataConfig(data_dir=f"file://{tmp_path}/in")
    assert dataset.open_dataset(config)._config.shuffle_block is None
    asked = DataConfig(data_dir=f"file://{tmp_path}/in", shuffle_block=4)
    (line,) = dataset.open_dataset(asked).remarks
    assert line.startswith("--shuffle_block=4: in a folder of images neighbours are of one class")
    convert.convert(str(tmp_path / "in"), str(tmp_path / "out"))
    config = DataConfig(data_dir=f"file://{tmp_path}/out")
    assert dataset.open_dataset(config)._config.shuffle_block == 16


def test_a_run_with_images_that_grow_is_evaluated_at_another_size():
    config = DataConfig(
        image_size=64, progressive_image_size="0:32,1:64", eval_image_size=96, batch_size=4
    )
    sized = dataset.at_evaluation_size(config)
    assert (sized.image_size, sized.evaluation_size) == (96, 96)
