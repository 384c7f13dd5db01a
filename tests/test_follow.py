"""Evaluation beside a run has each of its checkpoints once, though the run removes them."""

import dataclasses
import json
import math
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
from faulty_runs import MODULE, started
from test_checkpoints import create_store
from test_run_lock import write_lock

from trainer.checkpoints import best, follow, layout, restore
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.follow import Follower
from trainer.errors import UserError
from trainer.modes import evaluate
from trainer.process import files, identity
from trainer.process.identity import Process
from trainer.run.followed_run import FollowedRun
from trainer.safety import lock_holder, status


@pytest.fixture
def save(tmp_path):
    """A function that saves a checkpoint in which `w` has a value; the run keeps the newest."""
    with tf.Graph().as_default(), tf1.Session() as session:
        weight = tf1.get_variable("w", initializer=np.float32(0))
        session.run(weight.initializer)
        store = create_store(tmp_path, [weight], keep_checkpoints=1)

        def save(step, value):
            restore.assign(session, [(weight, value)])
            store.save(session, step)

        yield save


def take_all(follower):
    """Steps and values of the checkpoints that wait."""
    found = []
    while (taken := follower.take_next()) is not None:
        step, prefix = taken
        assert follower.fault_in(step) is None
        found.append((step, float(tf.train.load_variable(prefix, "w"))))
        follower.drop(step)
    return found


def test_checkpoints_that_the_run_removes_or_replaces_are_taken_before(tmp_path, save):
    follower = Follower(tmp_path)
    for step, value in ((1, 1), (2, 2), (3, 3)):
        save(step, value)
        follower.look()
    follower.look()
    assert layout.steps_in(str(tmp_path)) == [3]
    assert take_all(follower) == [(1, 1), (2, 2), (3, 3)]
    follower.look()
    assert take_all(follower) == []
    save(3, 4)  # As after weights that were not finite.
    follower.look()
    assert take_all(follower) == [(3, 4)]


def test_a_checkpoint_is_taken_when_the_folder_changes(tmp_path, save, monkeypatch):
    monkeypatch.setattr(follow, "_LOOK_SEC", math.inf)
    follower = Follower(tmp_path)
    with follower.following():
        for step in (1, 2, 3):
            save(step, step)
            end_sec = time.monotonic() + 60
            while (taken := follower.take_next()) is None:  # The thread takes it.
                assert time.monotonic() < end_sec
            assert taken[0] == step
            follower.drop(step)


def test_a_checkpoint_that_is_replaced_while_it_is_in_use_is_taken_afterwards(tmp_path, save):
    follower = Follower(tmp_path)
    save(1, 1)
    follower.look()
    step, prefix = follower.take_next()
    save(1, 2)
    follower.look()
    assert tf.train.load_variable(prefix, "w") == 1
    follower.drop(step)
    follower.look()
    assert take_all(follower) == [(1, 2)]


@pytest.fixture
def abandoned(tmp_path, save, monkeypatch):
    """The folder of a killed follower that has taken steps 1 to 3; the run has step 3 alone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as killed:
        killed.setattr(identity, "this_process", lambda: Process(ended.pid, 1))
        first = Follower(tmp_path)
    for step in (1, 2, 3):
        save(step, step)
        first.look()
    assert layout.steps_in(str(tmp_path)) == [3]
    (folder,) = files.abandoned(tmp_path / layout.FOLLOWING)
    return folder


def test_what_a_killed_follower_has_taken_the_next_one_has(tmp_path, abandoned):
    second = Follower(tmp_path)
    with second.following():
        second.keep_if_best(2, 0.5)
        assert take_all(second) == [(1, 1), (2, 2), (3, 3)]
    (entry,) = checkpoint_manifest.read(tmp_path / layout.BEST).entries
    assert (entry.step, entry.examples, entry.top1) == (2, 20, 0.5)
    assert checkpoint_manifest.fault_in(tmp_path / layout.BEST, entry) is None
    assert not abandoned.exists()
    assert not [path for path in tmp_path.iterdir() if "following" in path.name]


def test_what_was_taken_of_another_run_in_the_folder_is_removed(tmp_path, abandoned):
    for path in tmp_path.glob("[!.]*"):  # As by `rm -r runs/one/*`.
        files.remove(path)
    follower = Follower(tmp_path)
    with follower.following():
        assert follower.take_next() is None
    assert not abandoned.exists()


def test_what_cannot_be_taken_stays_for_the_next_follower(tmp_path, abandoned, monkeypatch):
    link = layout.link

    def link_in_part(names, **folders):
        link(names[:1], **folders)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "link", link_in_part)
    with (second := Follower(tmp_path)).following():
        assert take_all(second) == []
    assert layout.steps_in(str(abandoned)) == [3, 2, 1]
    monkeypatch.setattr(layout, "link", link)
    with (third := Follower(tmp_path)).following():
        assert take_all(third) == [(1, 1), (2, 2), (3, 3)]
    assert not abandoned.exists()


def test_the_best_of_what_was_followed_is_kept(tmp_path, save):
    follower = Follower(tmp_path)
    for step, top1 in ((1, 0.5), (2, 0.75), (3, 0.625)):
        save(step, step)
        follower.look()
        taken, _ = follower.take_next()
        save(step + 10, 0)  # The run has removed it when it is evaluated.
        follower.keep_if_best(taken, top1)
        follower.drop(taken)
        follower.look()
        take_all(follower)
    folder = tmp_path / layout.BEST
    assert tf.train.load_variable(tf.train.latest_checkpoint(str(folder)), "w") == 2
    (entry,) = checkpoint_manifest.read(folder).entries
    assert (entry.step, entry.top1) == (2, 0.75)
    assert checkpoint_manifest.fault_in(folder, entry) is None


@pytest.mark.parametrize("first", [0, 1])
def test_two_that_keep_a_best_one_at_the_same_time_leave_the_better(
    tmp_path, save, monkeypatch, first
):
    found = []
    for step, top1 in ((1, 0.5), (2, 0.75)):
        save(step, step)
        entry = checkpoint_manifest.read(tmp_path).find(step)
        temporary = tmp_path / f"of {step}"
        temporary.mkdir()
        layout.link([file.name for file in entry.files], source=tmp_path, target=temporary)
        found.append((dataclasses.replace(entry, top1=top1), temporary))
    other = threading.Thread(target=best.replace, args=(tmp_path, *found[1 - first]))
    move = layout.move

    def move_meanwhile(*folders):
        move(*folders)
        monkeypatch.setattr(layout, "move", move)
        other.start()
        other.join(0.5)  # It waits for this one, or would have ended.

    monkeypatch.setattr(layout, "move", move_meanwhile)
    best.replace(tmp_path, *found[first])
    other.join()
    folder = tmp_path / layout.BEST
    (entry,) = checkpoint_manifest.read(folder).entries
    assert (entry.step, entry.top1) == (2, 0.75)
    assert checkpoint_manifest.fault_in(folder, entry) is None
    assert layout.steps_in(str(folder)) == [2]


def test_nobody_waits_for_ever_for_a_process_that_keeps_a_best_one(tmp_path, save, monkeypatch):
    monkeypatch.setattr(best, "_PATIENCE_SEC", 0)
    follower = Follower(tmp_path)
    save(1, 1)
    follower.look()
    (tmp_path / layout.BEST).mkdir()
    with open(tmp_path / layout.BEST / ".lock", "w") as held:
        files.lock(held, held.name, wait=False)
        with pytest.raises(OSError, match="another process has been writing there"):
            follower.keep_if_best(1, 0.5)
    follower.keep_if_best(1, 0.5)
    assert layout.steps_in(str(tmp_path / layout.BEST)) == [1]


def test_a_run_of_another_host_is_gone_when_its_lock_stands_still(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lock_holder.time, "monotonic", lambda: now[0])
    watch = lock_holder.Watch(tmp_path, silence_sec=60)
    assert not watch.may_be_alive()
    write_lock(tmp_path, beats=1, host="elsewhere", identity="another host")
    assert watch.may_be_alive()
    now[0] = 59
    write_lock(tmp_path, beats=2, host="elsewhere", identity="another host")
    assert watch.may_be_alive()
    now[0] = 119
    assert watch.may_be_alive()
    now[0] = 120
    assert not watch.may_be_alive()


def test_a_complete_run_that_is_made_longer_is_waited_for(tmp_path, monkeypatch):
    status.Status(str(tmp_path), rank=0).set("finished", step=2)
    write_lock(tmp_path, beats=1)  # By its start, that reads the data as yet.
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            (tmp_path / lock_holder.FILE_NAME).unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    run = FollowedRun(tmp_path, patience_sec=0)
    assert list(run.checkpoints(Follower(tmp_path))) == []
    assert len(sleeps) == 3


def test_a_step_is_left_to_a_run_that_has_passed_over_a_damaged_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "model.ckpt-9.index").write_text("damaged")
    status.Status(str(tmp_path), rank=0).set("running", step=4)
    write_lock(tmp_path, beats=1)
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss": 1.0}\n')

    monkeypatch.setattr(time, "sleep", sleep)
    FollowedRun(tmp_path).wait_until_left(4)
    assert len(sleeps) == 3


def test_a_folder_without_a_run_is_a_line(tmp_path):
    run = FollowedRun(tmp_path / "no", patience_sec=0)
    with pytest.raises(UserError, match=r"--logdir: no run has begun in .*/no for 0 s"):
        list(run.checkpoints(Follower(tmp_path / "no")))


def evaluations(logdir):
    """Steps and accuracies of the run's evaluations, in the order in which they were logged."""
    path = logdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line for line in map(json.loads, lines) if "eval/top1" in line]
    return [(line["step"], line["eval/top1"]) for line in found]


def test_what_a_file_server_does_not_give_costs_nothing_else(tmp_path, abandoned, monkeypatch):
    identity_of = follow._identity_of

    def fails(folder, step):
        if step == 2:
            raise OSError(116, "Stale file handle")
        return identity_of(folder, step)

    monkeypatch.setattr(follow, "_identity_of", fails)
    with (second := Follower(tmp_path)).following():
        assert take_all(second) == [(1, 1), (3, 3)]
    assert 2 in layout.steps_in(str(abandoned))


def test_a_folder_that_cannot_be_read_is_a_line(tmp_path):
    (tmp_path / "file").touch()
    fault = evaluate._find_log_fault(tmp_path / "file" / "run")
    assert fault == "which can't be read (Not a directory)"
    assert evaluate._find_log_fault(tmp_path / "no" / "run") is None


@pytest.mark.processes
def test_every_checkpoint_of_a_run_is_evaluated_once_beside_it(tmp_path):
    """The run evaluates every other one by itself; what follows it is killed, and started again."""
    logdir = tmp_path / "run"
    logdir.mkdir()
    steps = [*tiny.FLAGS[1:], "--model=slow:network", "--steps=32", "--checkpoint_every=4"]
    # Only the first two of its eight checkpoints are removed: another one could be lost while
    # nothing follows the run.
    every = 8 * tiny.BATCH_SIZE / tiny.TRAIN_EXAMPLES
    training = [*steps, "--keep_checkpoints=6", f"--eval_every_epochs={every}"]
    following = ["--mode=evaluate", "--follow", "--dataset=tiny:dataset", f"--logdir={logdir}"]
    slow = {"SLOW_WORKERS_MS": "600", "SLOW_WORKERS_STEPS": "1000"}
    command = [*MODULE, *training, f"--logdir={logdir}"]
    with started([*MODULE, *following]) as first, started(command, **slow) as run:
        first.wait_until(lambda: len(evaluations(logdir)) >= 3, "three evaluations")
        first.process.kill()
        with started([*MODULE, *following]) as second:
            assert run.wait() == 0, run.output()
            assert second.wait() == 0, second.output()
    found = evaluations(logdir)
    assert sorted(step for step, _ in found) == list(range(4, 33, 4))
    assert len(list(logdir.glob("model.ckpt-*.index"))) == 6
    assert f"{logdir}/model.ckpt-28: top-1 " in second.output()
    assert f"{logdir}/model.ckpt-24: top-1 " not in second.output()
    assert "checkpoints of" in second.output()
    (kept,) = checkpoint_manifest.read(logdir / layout.BEST).entries
    assert dict(found)[kept.step] == pytest.approx(kept.top1)
    assert kept.top1 == pytest.approx(max(top1 for _, top1 in found))
    assert not [path.name for path in logdir.iterdir() if "following" in path.name]
