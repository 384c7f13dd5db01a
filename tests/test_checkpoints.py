"""Checkpoints on disk: damaged ones are skipped, other networks' are refused."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import atomic_file, checkpoints
from trainer.config import RunConfig, UserError


@pytest.fixture
def logdir(tmp_path):
    """A folder with checkpoints of the steps 1, 2 and 3, in which `w` is the step."""
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=np.zeros([100, 100], np.float32))
        value = tf1.placeholder(tf.float32, [])
        assign = variable.assign(tf.fill([100, 100], value))
        store = checkpoints.create_store(
            RunConfig(logdir=str(tmp_path)), rank=0, variables=[variable]
        )
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
    assert checkpoints.find_newest(str(logdir)) == checkpoints.Found(
        f"{logdir}/model.ckpt-3", 3, ()
    )


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "deleted"])
def test_a_damaged_one_is_skipped(logdir, suffix, damage):
    path = logdir / f"model.ckpt-3.{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "deleted":
        path.unlink()
    else:
        half = bytes(content[: len(content) // 2])
        path.write_bytes({"cut": half, "flipped": bytes(content), "emptied": b""}[damage])
    found = checkpoints.find_newest(str(logdir))
    assert found.step == 2
    if (damage, suffix) != ("deleted", "index"):  # Without its index there is none to be skipped.
        assert len(found.skipped) == 1
        assert "model.ckpt-3 is damaged" in found.skipped[0]


@pytest.mark.parametrize("content", [b"", b"\x00garbage", b'model_checkpoint_path: "gone"', None])
def test_the_state_file_is_not_believed(logdir, content):
    if content is None:
        (logdir / "checkpoint").unlink()
    else:
        (logdir / "checkpoint").write_bytes(content)
    assert checkpoints.find_newest(str(logdir)).step == 3


def test_where_all_are_damaged_it_stops(logdir):
    for step in (1, 2, 3):
        data_file(logdir, step).write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        checkpoints.find_newest(str(logdir))


def test_an_empty_folder_has_none(tmp_path):
    assert checkpoints.find_newest(str(tmp_path)).prefix is None
    assert checkpoints.find_newest(str(tmp_path / "missing")).prefix is None


def test_only_the_newest_are_kept(tmp_path):
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=1.0)
        session.run(variable.initializer)
        config = RunConfig(logdir=str(tmp_path), keep_checkpoints=2)
        store = checkpoints.create_store(config, rank=0, variables=[variable])
        for step in (5, 10, 15, 100):
            store.save(session, step)
    assert checkpoints.steps_in(str(tmp_path)) == [100, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint",
        *(f"model.ckpt-{n}.{s}" for n in (100, 15) for s in ("data-00000-of-00001", "index")),
    ]


def test_a_save_that_fails_leaves_the_earlier_ones(logdir, monkeypatch):
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("w", initializer=1.0)
        session.run(variable.initializer)
        store = checkpoints.create_store(
            RunConfig(logdir=str(logdir)), rank=0, variables=[variable]
        )

        def no_space(path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(atomic_file, "sync", no_space)
        with pytest.raises(OSError, match="No space left"):
            store.save(session, 4)
    assert checkpoints.find_newest(str(logdir)).step == 3
    assert not (logdir / ".saving").exists()


def restore_into(shape, logdir, *, name="w"):
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable(name, shape)
        session.graph.finalize()
        checkpoints.restore(session, f"{logdir}/model.ckpt-3", [variable])
        return session.run(variable)


def test_restored_values_are_the_saved_ones(logdir):
    np.testing.assert_array_equal(restore_into([100, 100], logdir), np.full([100, 100], 3.0))


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
    atomic_file.write_text(path, json.dumps({"step": 1}))

    def no_space(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_file, "sync", no_space)
    with pytest.raises(OSError, match="No space"):
        atomic_file.write_text(path, json.dumps({"step": 2}))
    assert json.loads(path.read_text()) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]
