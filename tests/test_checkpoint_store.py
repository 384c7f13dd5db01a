"""The store of a run: the best is kept, other workers go on, changes are reported."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from test_checkpoints import FACTS, create_store

from trainer.checkpoints import changes, layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.manifest import Entry, Manifest
from trainer.errors import UserError


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
        store.note_evaluation(session, total_steps, total_steps / 100)
        assert checkpoint_manifest.read(tmp_path).find(15).top1 is None
        best = tf.train.latest_checkpoint(f"{tmp_path}/best")
        assert tf.train.load_variable(best, "global_step") == total_steps
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
            config={
                "run": {"seed": 1, "logdir": "elsewhere"},
                "telemetry": {"mllog": "a.log", "profile_steps": "1:2", "histogram_every": 3},
                "benchmark": {"benchmark_steps": 3, "result_csv": "a.csv"},
            },
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


def test_where_all_that_are_kept_are_there_room_for_one_suffices(tmp_path, counted, monkeypatch):
    session, _, _, create = counted
    store = create(keep_checkpoints=2)
    for step in (1, 2):
        store.save(session, step)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20))
    store.check_room()
    with pytest.raises(UserError, match="--logdir: must have room for two checkpoints"):
        create(keep_checkpoints=3).check_room()


@pytest.fixture
def resumed_from_one(tmp_path, counted):
    """`counted`, with the store of a run that passed over a damaged checkpoint of step 2."""
    session, weights, step, create = counted
    store = create(keep_checkpoints=2)
    for number in (1, 2):
        restore.assign(session, [(weights, [number] * 3), (step, number)])
        store.save(session, number)
    store.note_evaluation(session, 1, 0.5)
    damaged = tmp_path / "model.ckpt-2.data-00000-of-00001"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    store = create(keep_checkpoints=2)
    assert "is damaged" in store.restore(session)[0]
    assert session.run(weights).tolist() == [1, 1, 1]
    restore.assign(session, [(weights, [7] * 3), (step, 2)])
    return session, step, store


def test_a_checkpoint_that_was_passed_over_is_not_taken_for_the_best(tmp_path, resumed_from_one):
    session, _, store = resumed_from_one
    assert not store.lacks_evaluation(2)
    store.note_evaluation(session, 2, 0.75)
    found = search.find_newest(f"{tmp_path}/best")
    assert (found.step, found.entry.top1) == (2, 0.75)
    assert tf.train.load_variable(found.prefix, "w").tolist() == [7, 7, 7]


def test_nor_for_one_of_those_that_are_kept_or_for_the_state_before(tmp_path, resumed_from_one):
    session, step, store = resumed_from_one
    store.save_before(session, 3)
    assert search.find_newest(str(tmp_path)).step == 2
    data = tmp_path / "model.ckpt-2.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    store.roll_back(session)
    restore.assign(session, [(step, 3)])
    store.save(session, 3)
    assert layout.steps_in(str(tmp_path)) == [3, 1]


def test_so_it_is_where_the_graph_was_built_anew(tmp_path, resumed_from_one, counted):
    session, _, before = resumed_from_one
    store = counted[3]()
    store.take_over(before)
    store.save_before(session, 3)
    assert search.find_newest(str(tmp_path)).step == 2


def test_files_that_were_damaged_since_are_not_taken_for_the_best(tmp_path, counted):
    session, weights, step, create = counted
    store = create()
    restore.assign(session, [(weights, [4] * 3), (step, 4)])
    store.save(session, 4)
    (tmp_path / "model.ckpt-4.data-00000-of-00001").write_bytes(b"")
    store.note_evaluation(session, 4, 0.5)
    assert tf.train.load_variable(f"{tmp_path}/best/model.ckpt-4", "w").tolist() == [4, 4, 4]


def test_a_checkpoint_whose_entry_was_never_written_counts_as_the_one_before(tmp_path, counted):
    session, weights, step, create = counted
    for number in (10, 20):
        restore.assign(session, [(weights, [number] * 3), (step, number)])
        create().save(session, number)
    manifest = checkpoint_manifest.read(tmp_path)
    checkpoint_manifest.write(tmp_path, manifest.without(20))
    same = create()
    same.restore(session)
    assert checkpoint_manifest.read(tmp_path).find(20).examples == 200
    assert same.lacks_evaluation(20)
    checkpoint_manifest.write(tmp_path, manifest.without(20))
    wider = create(facts=dataclasses.replace(FACTS, workers=4, global_batch_size=40))
    assert "step 20 is step 5 now, after 200 examples" in wider.restore(session)[-1]
    assert session.run(step) == 5
    checkpoint_manifest.write(tmp_path, Manifest())
    assert "steps are taken to be of 10 examples" in create().restore(session)[-1]


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
    (line,) = changes.describe(
        before, dataclasses.replace(FACTS, kernels="on but for convolutions")
    )
    assert line.startswith("the compiled kernels were on, now they are on but for convolutions: ")
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
