"""Checkpoints on disk: damaged ones are skipped, other networks' are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import changes, layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints import store as checkpoint_store
from trainer.checkpoints.manifest import Entry, Manifest, RunFacts
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


@pytest.fixture
def logdir(tmp_path):
    """A folder with checkpoints of the steps 1, 2 and 3, in which `w` is the step."""
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=np.zeros([100, 100], np.float32))
        value = tf1.placeholder(tf.float32, [])
        assign = variable.assign(tf.fill([100, 100], value))
        store = create_store(tmp_path, [variable])
        for step in (1, 2, 3):
            session.run(assign, {value: step})
            store.save(session, step)
    return tmp_path


def data_file(logdir, step):
    return logdir / f"model.ckpt-{step}.data-00000-of-00001"


def test_tensorflows_own_tools_read_them(logdir):
    assert tf.train.latest_checkpoint(str(logdir)) == f"{logdir}/model.ckpt-3"
    assert tf.train.load_variable(f"{logdir}/model.ckpt-2", "w")[5, 5] == 2


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
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "deleted"])
@pytest.mark.parametrize("content", [None, b"", b"\x00garbage", b'{"format": "another"}'])
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


@pytest.fixture
def counted(tmp_path):
    """(session, `w`, `global_step`, a function that makes stores) of a run of 4 variables."""
    with tf.Graph().as_default(), tf1.Session() as session:
        weights = tf1.get_variable("w", initializer=np.zeros([3], np.float32))
        step = tf1.train.get_or_create_global_step()
        session.run([weights.initializer, step.initializer])
        variables = [weights, step]
        yield session, weights, step, lambda **kw: create_store(tmp_path, variables, **kw)


def test_the_best_by_top1_is_kept_apart(tmp_path, counted):
    session, weights, step, create = counted
    store = create(keep_checkpoints=1)
    for number, top1 in ((1, 0.5), (2, 0.75), (3, 0.625), (4, 0.75)):
        restore.assign(session, [(weights, [number] * 3)])
        restore.assign(session, [(step, number)])
        if number != 2:  # The best one is of a step that has no other checkpoint.
            store.save(session, number)
        store.note_evaluation(session, number, top1)
    assert layout.steps_in(str(tmp_path)) == [4]
    assert tf.train.latest_checkpoint(f"{tmp_path}/best") == f"{tmp_path}/best/model.ckpt-2"
    assert tf.train.load_variable(f"{tmp_path}/best/model.ckpt-2", "w").tolist() == [2, 2, 2]
    found = search.find_newest(f"{tmp_path}/best")
    assert (found.step, found.entry.top1) == (2, 0.75)
    assert checkpoint_manifest.read(tmp_path).find(4).top1 == 0.75
    assert not store.lacks_evaluation(4)
    store.save(session, 5)
    assert store.lacks_evaluation(5)


def test_an_evaluation_counts_when_the_best_is_kept(tmp_path, counted, monkeypatch):
    session, _, step, create = counted
    store = create()
    restore.assign(session, [(step, 1)])
    store.save(session, 1)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(layout, "move", fail)
        with pytest.raises(OSError, match="No space"):
            store.note_evaluation(session, 1, 0.5)
    assert store.lacks_evaluation(1)
    store.note_evaluation(session, 1, 0.5)
    assert not store.lacks_evaluation(1)
    assert search.find_newest(f"{tmp_path}/best").step == 1


def test_with_other_workers_a_run_goes_on_at_the_same_example(tmp_path, counted):
    session, weights, step, create = counted
    store = create()
    for number in (10, 25):
        restore.assign(session, [(weights, [number] * 3)])
        restore.assign(session, [(step, number)])
        store.save(session, number)
    wider = create(
        facts=dataclasses.replace(FACTS, workers=4, global_batch_size=40), keep_checkpoints=1
    )
    told = wider.restore(session)[-1]
    assert session.run(step) == 6  # 25 x 10 examples are 6 x 40, and 10 more.
    assert session.run(weights).tolist() == [25, 25, 25]
    assert "step 25 is step 6 now, after 250 examples, 10 of which are seen again" in told
    # The greatest number is the newest state again, also for runs of the next day.
    assert layout.steps_in(str(tmp_path)) == [6]
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/model.ckpt-6"
    assert checkpoint_manifest.read(tmp_path).find(6).examples == 240
    create(facts=dataclasses.replace(FACTS, global_batch_size=8)).restore(session)
    assert session.run(step) == 30


def test_a_complete_run_stays_complete_with_other_workers(tmp_path, counted):
    session, _, step, create = counted
    for number in (15, 30):
        restore.assign(session, [(step, number)])
        create().save(session, number)
    for size, total_steps in ((20, 15), (5, 60)):
        facts = dataclasses.replace(FACTS, global_batch_size=size, total_steps=total_steps)
        store = create(facts=facts)
        store.restore(session)
        assert session.run(step) == total_steps
        assert layout.steps_in(str(tmp_path)) == [30, 15]
        assert not store.lacks_evaluation(total_steps)  # 15 is of half the run.
    longer = {"run": {"seed": 0, "steps": 100}}
    facts = dataclasses.replace(FACTS, global_batch_size=5, total_steps=100, config=longer)
    create(facts=facts).restore(session)
    assert session.run(step) == 60


def test_what_has_changed_since_is_told(counted):
    session, _, _, create = counted
    create().save(session, 1)
    other = create(
        facts=dataclasses.replace(
            FACTS,
            fingerprint="other data",
            versions={"numpy": "3"},
            config={"run": {"seed": 1, "logdir": "elsewhere"}},
        )
    )
    assert other.restore(session)[1:] == (
        "flags that have changed since: seed 0 -> 1",
        "versions that have changed since: numpy 2 -> 3",
        "the data has changed since: the run goes on with another order of examples",
    )


def test_a_disk_without_room_for_two_is_refused(tmp_path, counted, monkeypatch):
    _, _, _, create = counted
    store = create()
    store.check_room()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=39))
    with pytest.raises(UserError, match="--logdir: must have room for two checkpoints"):
        store.check_room()  # 3 floats and a step of 8 bytes, twice: 40 bytes.


def test_the_state_before_a_bad_step_is_saved_under_its_own_number(tmp_path, counted):
    session, _, step, create = counted
    restore.assign(session, [(step, 8)])
    create().save_before(session, 8)
    assert search.find_newest(str(tmp_path)).step == 7
    assert tf.train.load_variable(f"{tmp_path}/model.ckpt-7", "global_step") == 7


def test_a_resume_with_other_kernels_says_so_in_one_line():
    before = dataclasses.replace(FACTS, kernels="on")
    assert changes.describe(before, dataclasses.replace(FACTS, kernels="on")) == []
    assert changes.describe(before, dataclasses.replace(FACTS, kernels="off")) == [
        "the compiled kernels were on, now they are off: results are rounded otherwise, and bits "
        "will differ"
    ]
    # Earlier versions did not record it.
    assert changes.describe(FACTS, before) == []


def test_a_checkpoint_records_whether_kernels_were_used(tmp_path):
    entry = Entry(
        1, 0.1, 10, "2026-01-01T00:00:00+00:00", (), dataclasses.replace(FACTS, kernels="off")
    )
    checkpoint_manifest.write(tmp_path, Manifest((entry,)))
    text = (tmp_path / "checkpoints.json").read_text()
    assert json.loads(text)["checkpoints"][0]["run"]["kernels"] == "off"
    assert checkpoint_manifest.read(tmp_path).entries == (entry,)
    earlier = json.loads(text)
    del earlier["checkpoints"][0]["run"]["kernels"]
    (tmp_path / "checkpoints.json").write_text(json.dumps(earlier))
    assert checkpoint_manifest.read(tmp_path).entries[0].run.kernels is None
