"""Checkpoints on disk: damaged ones are skipped, other networks' are refused."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import layout, model_file, restore, search
from trainer.checkpoints import store as checkpoint_store
from trainer.checkpoints.manifest import RunFacts
from trainer.config import RunConfig
from trainer.errors import UserError
from trainer.process import files

FACTS = RunFacts(
    workers=1,
    global_batch_size=10,
    total_steps=30,
    train_examples=100,
    fingerprint="data",
    versions={"numpy": "2"},
    config={"run": {"seed": 0}},
)


def create_store(folder, variables, *, facts=FACTS, **config):
    return checkpoint_store.create_store(
        RunConfig(logdir=str(folder), **config), rank=0, variables=variables, facts=facts
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of the steps 1, 2 and 3, in which `w` is the step."""
    folder = tmp_path_factory.mktemp("saved")
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=np.zeros([100, 100], np.float32))
        value = tf1.placeholder(tf.float32, [])
        assign = variable.assign(tf.fill([100, 100], value))
        store = create_store(folder, [variable])
        for step in (1, 2, 3):
            session.run(assign, {value: step})
            store.save(session, step)
    return folder


@pytest.fixture
def logdir(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def data_file(logdir, step):
    return logdir / f"model.ckpt-{step}.data-00000-of-00001"


def test_tensorflows_own_tools_read_them(logdir):
    assert tf.train.latest_checkpoint(str(logdir)) == f"{logdir}/model.ckpt-3"
    assert tf.train.load_variable(f"{logdir}/model.ckpt-2", "w")[5, 5] == 2


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("model.ckpt-2", 2),
        ("model.ckpt-2.index", 2),
        ("model.ckpt-2.data-00000-of-00001", 2),
        ("model.ckpt-2.meta", 2),
        ("checkpoint", 3),
        ("", 3),
    ],
)
def test_what_people_give_for_a_checkpoint_is_taken_for_what_it_means(logdir, given, step):
    found = search.choose(RunConfig(init_checkpoint=f"{logdir}/{given}"))
    assert found == search.Chosen(f"{logdir}/model.ckpt-{step}")


@pytest.mark.parametrize("name", ["net", "checkpoint", "net.index"])
def test_a_prefix_is_taken_for_one_whatever_else_has_its_name(logdir, name):
    folder = logdir / "copy"
    (folder / name).mkdir(parents=True)
    (folder / "model.json").write_text('{"image_size": 32}')
    for ending in ("index", "data-00000-of-00001"):
        shutil.copy(logdir / f"model.ckpt-1.{ending}", folder / f"{name}.{ending}")
    run = RunConfig(init_checkpoint=f"{folder}/{name}")
    assert search.choose(run) == search.Chosen(f"{folder}/{name}")
    assert model_file.find(run).path == folder / "model.json"


def test_a_newer_one_that_is_passed_over_is_told(logdir):
    hurt_the_newest(logdir, "index", "cut")
    for run in (RunConfig(init_checkpoint=str(logdir)), RunConfig(logdir=str(logdir))):
        prefix, remarks = search.choose(run)
        assert prefix == f"{logdir}/model.ckpt-2"
        assert re.fullmatch(r".*/model\.ckpt-3 is damaged .*", *remarks)


def test_what_is_no_checkpoint_is_told(tmp_path):
    (tmp_path / "resnet_v2_50.ckpt").write_bytes(b"format V1")
    for given in (f"{tmp_path}/resnet_v2_50.ckpt", str(tmp_path)):
        with pytest.raises(UserError, match=r"resnet_v2_50\.ckpt is one file, which must be .* V1"):
            search.choose(RunConfig(init_checkpoint=given))
    (tmp_path / "model.ckpt-7.index").write_text("damaged")
    with pytest.raises(UserError, match=r"--init_checkpoint: no checkpoint in .* can be read"):
        search.choose(RunConfig(init_checkpoint=str(tmp_path)))


def test_the_newest_is_found(logdir):
    assert search.find_newest(str(logdir)) == search.Found(f"{logdir}/model.ckpt-3", 3, ())


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "deleted"])
def test_a_damaged_one_is_skipped(logdir, suffix, damage):
    found = hurt_the_newest(logdir, suffix, damage)
    assert found.step == 2
    assert len(found.skipped) == 1
    assert f"model.ckpt-3 is damaged (model.ckpt-3.{suffix} " in found.skipped[0]


def hurt_the_newest(logdir, suffix, damage):
    path = logdir / f"model.ckpt-3.{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "deleted":
        path.unlink()
    else:
        half = bytes(content[: len(content) // 2])
        path.write_bytes({"cut": half, "flipped": bytes(content), "emptied": b""}[damage])
    return search.find_newest(str(logdir))


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize(
    ("damage", "content"),
    [
        *((damage, None) for damage in ("cut", "flipped", "emptied", "deleted")),
        *(("flipped", content) for content in (b"", b"\x00garbage", b'{"format": "another"}')),
    ],
)
def test_so_it_is_without_a_manifest(logdir, suffix, damage, content):
    manifest = logdir / "checkpoints.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    found = hurt_the_newest(logdir, suffix, damage)
    assert found.step == 2
    told = [line for line in found.skipped if "checkpoints are read whole instead" in line]
    assert len(told) == (content is not None)


def test_a_checkpoint_that_was_removed_whole_is_no_damage(logdir):
    for path in logdir.glob("model.ckpt-3.*"):
        path.unlink()
    assert search.find_newest(str(logdir)) == search.Found(f"{logdir}/model.ckpt-2", 2, ())


def test_the_manifest_says_what_a_checkpoint_is(logdir):
    manifest = json.loads((logdir / "checkpoints.json").read_text())
    entry = manifest["checkpoints"][-1]
    assert (entry["step"], entry["examples"], entry["epoch"]) == (3, 30, 0.3)
    assert entry["run"]["config"] == {"run": {"seed": 0}}
    assert {file["name"]: file["bytes"] for file in entry["files"]} == {
        path.name: path.stat().st_size for path in logdir.glob("model.ckpt-3.*")
    }


@pytest.mark.parametrize("content", [b"", b"\x00garbage", b'model_checkpoint_path: "gone"', None])
def test_the_state_file_is_not_believed(logdir, content):
    if content is None:
        (logdir / "checkpoint").unlink()
    else:
        (logdir / "checkpoint").write_bytes(content)
    assert search.find_newest(str(logdir)).step == 3


def test_where_all_are_damaged_it_stops(logdir):
    for step in (1, 2, 3):
        data_file(logdir, step).write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        search.find_newest(str(logdir))


def test_an_empty_folder_has_none(tmp_path):
    assert search.find_newest(str(tmp_path)).prefix is None
    assert search.find_newest(str(tmp_path / "missing")).prefix is None


def test_only_the_newest_are_kept(tmp_path):
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=1.0)
        session.run(variable.initializer)
        store = create_store(tmp_path, [variable], keep_checkpoints=2)
        for step in (5, 10, 15, 100):
            store.save(session, step)
    assert layout.steps_in(str(tmp_path)) == [100, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint",
        "checkpoints.json",
        *(f"model.ckpt-{n}.{s}" for n in (100, 15) for s in ("data-00000-of-00001", "index")),
    ]
    # As one that a run removes after another process has chosen it.
    with pytest.raises(UserError, match=r"ckpt-10: is not there, or no more.*model.ckpt-100"):
        restore.open_checkpoint(layout.prefix_of(str(tmp_path), 10))


def test_a_save_that_fails_leaves_the_earlier_ones(logdir, monkeypatch):
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=1.0)
        session.run(variable.initializer)
        store = create_store(logdir, [variable])

        def no_space(path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "sync", no_space)
        with pytest.raises(OSError, match="No space left"):
            store.save(session, 4)
    assert search.find_newest(str(logdir)).step == 3
    assert not list(logdir.glob(f".*{files.SUFFIX}"))


def restore_into(shape, logdir, *, name="w"):
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable(name, shape)
        session.graph.finalize()
        restore.restore(session, f"{logdir}/model.ckpt-3", [variable])
        return session.run(variable)


def test_restored_values_are_the_saved_ones(logdir):
    np.testing.assert_array_equal(restore_into([100, 100], logdir), np.full([100, 100], 3.0))


def test_variables_are_loaded_in_one_run_but_for_those_with_one_initial_value(tmp_path):
    names = ["a", "b", "c", "d"]
    with tf.Graph().as_default(), tf1.Session() as session:
        shared = tf.zeros([3])
        variables = [
            tf1.get_variable(name, initializer=shared if name in "bd" else tf.ones([2]))
            for name in names
        ]
        saver = tf1.train.Saver(variables)
        saved = [np.full(v.shape, 5.0 + number) for number, v in enumerate(variables)]
        restore.assign(session, list(zip(variables, saved, strict=True)))
        saver.save(session, f"{tmp_path}/model.ckpt")
    reader = tf.train.load_checkpoint(f"{tmp_path}/model.ckpt")
    for name, value in zip(names, saved, strict=True):
        np.testing.assert_array_equal(reader.get_tensor(name), value)

    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [
            tf1.get_variable(v, initializer=tf.ones(saved[i].shape)) for i, v in enumerate(names)
        ]
        run, runs = session.run, []
        session.run = lambda *arguments: (runs.append(arguments), run(*arguments))[1]
        restore.restore(session, f"{tmp_path}/model.ckpt", variables)
        assert len(runs) == 1
        for value, variable in zip(saved, variables, strict=True):
            np.testing.assert_array_equal(run(variable), value)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("w", [100, 10], r"w is \[100, 100\] in the checkpoint, \[100, 10\] in this network"),
        ("v", [3], "v is not in the checkpoint; w is not in this network"),
    ],
)
def test_another_networks_checkpoint_is_refused_by_name(logdir, name, shape, reason):
    with pytest.raises(UserError, match=reason):
        restore_into(shape, logdir, name=name)


def test_atomic_file_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    files.write_text(path, json.dumps({"step": 1}))

    def no_space(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", no_space)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, json.dumps({"step": 2}))
    assert json.loads(path.read_text()) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_a_damaged_newer_one_does_not_push_out_what_is_saved(logdir):
    data_file(logdir, 3).write_bytes(b"")
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", [100, 100])
        store = create_store(logdir, [variable], keep_checkpoints=1)
        store.restore(session)
        store.save(session, 2)
    assert search.find_newest(str(logdir)).step == 2
    assert tf.train.latest_checkpoint(str(logdir)) == f"{logdir}/model.ckpt-2"
