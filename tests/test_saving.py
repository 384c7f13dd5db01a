"""Saves in the background: what they write, what waits for them, and what a kill leaves."""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from processes import ROOT, run
from test_checkpoints import create_store

from trainer.checkpoints import background, bundle, layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.bundle import BundleWriter
from trainer.checkpoints.snapshot import Shortage
from trainer.distributed import Group
from trainer.machine import free_memory
from trainer.machine import session as machine_session
from trainer.process import files
from trainer.run import saving
from trainer.run.guard import LoopGuard, Requests, encode_requests, read_requests
from trainer.run.saving import Saving
from trainer.safety.protection import Protection
from trainer.safety.status import Status
from trainer.safety.watchdog import create_watchdog
from trainer.telemetry.console import NullConsole
from trainer.telemetry.writers.protocol import NullWriter


class Lines(NullConsole):
    """A console that keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


class Written(NullWriter):
    """A writer that keeps scalars."""

    def __init__(self):
        self.scalars = []

    def write(self, step, scalars, *, wall_time):
        self.scalars += [(step, *each) for each in scalars.items()]


def create_saving(store, session=None, *, status=None, done=None, **options):
    return Saving(
        store,
        session,
        Lines(),
        Written(),
        status or Status(None, rank=0),
        done=done,
        **options,
    )


def lines_of(saver):
    return saver._console.lines


@pytest.fixture
def network():
    """(session, its variables, a function that sets them to a step's values)."""
    with tf.Graph().as_default(), tf1.Session() as session:
        shapes = {"z": [3, 5], "a": [70, 70], "a_half": [7], "m": []}
        types = {"a_half": np.float16}
        variables = [
            tf1.get_variable(name, initializer=np.zeros(shape, types.get(name, np.float32)))
            for name, shape in shapes.items()
        ]
        variables.append(tf1.train.get_or_create_global_step())
        session.run(tf1.global_variables_initializer())
        update = tf.group(*(v.assign_add(tf.ones(v.shape, v.dtype)) for v in variables))

        def set_to(step):
            values = [np.full(v.shape, step, v.dtype.as_numpy_dtype) for v in variables]
            restore.assign(session, list(zip(variables, values, strict=True)))

        set_to.update = lambda: session.run(update)
        yield session, variables, set_to


def assert_all_are(prefix, step):
    reader = tf.train.load_checkpoint(prefix)
    for name in reader.get_variable_to_shape_map():
        assert np.all(reader.get_tensor(name) == step), name


def test_a_copy_is_saved_as_savers_bytes_whatever_the_steps_do_meanwhile(tmp_path, network):
    session, variables, set_to = network
    store = create_store(tmp_path, variables)
    set_to(7)
    tf1.train.Saver(variables).save(session, f"{tmp_path}/expected", write_meta_graph=False)
    copied = store.copy(session, 7)
    for value in filter(np.ndim, store._snapshot.take(session)):  # Copied once, not once more.
        assert not value.flags.owndata
        assert value.ctypes.data % 64 == 0  # TensorFlow takes it as it is.
    assert copied.bytes == sum(v.shape.num_elements() * v.dtype.size for v in variables)
    set_to.update()  # In place, as optimizers do.
    set_to(9)
    copied.save()
    for ending in ("index", "data-00000-of-00001"):
        expected = (tmp_path / f"expected.{ending}").read_bytes()
        assert (tmp_path / f"model.ckpt-7.{ending}").read_bytes() == expected
    assert search.find_newest(str(tmp_path)).step == 7


@pytest.mark.slow
def test_a_hundred_saves_in_a_row_lose_nothing(tmp_path, network, monkeypatch):
    monkeypatch.setattr(saving, "_LONG_SEC", float("inf"))  # However slow this machine's disk is.
    session, variables, set_to = network
    set_to(0)
    saver = create_saving(create_store(tmp_path, variables, keep_checkpoints=100), session)
    saver.finish_step(0)
    saver.settle()
    monkeypatch.delattr(machine_session, "prepare")  # Saves find what they need prepared.
    for step in range(1, 101):
        set_to.update()
        saver.begin(step)
    saver.close()
    assert layout.steps_in(str(tmp_path)) == list(range(100, 0, -1))
    manifest = checkpoint_manifest.read(tmp_path)
    assert [entry.step for entry in manifest.entries] == list(range(1, 101))
    for entry in manifest.entries:
        assert checkpoint_manifest.fault_in(tmp_path, entry) is None
        assert_all_are(f"{tmp_path}/model.ckpt-{entry.step}", entry.step)
    assert not list(tmp_path.glob(f".*{files.SUFFIX}"))
    assert [tag for _, tag, _ in saver._writer.scalars] == ["perf/checkpoint_write_ms"] * 100


def test_a_save_rests_after_every_piece(tmp_path, network, monkeypatch):
    session, variables, _ = network
    rests = []
    monkeypatch.setattr(background, "rest", lambda: rests.append(threading.get_ident()))
    monkeypatch.setattr(bundle, "_READ_BYTES", 64)
    monkeypatch.setattr(checkpoint_manifest, "_READ_BYTES", 1000)
    create_store(tmp_path, variables).copy(session, 1).save()
    sizes = [path.stat().st_size for path in tmp_path.glob("model.ckpt-1.*")]
    read = [("a",), ("a_half", "global_step", "m"), ("z",)]  # Parts of up to 64 bytes.
    assert len(sizes) == 2
    assert len(rests) == 1 + len(read) + sum(-(-size // 1000) for size in sizes)


def test_what_ends_a_run_waits_for_the_save_and_makes_its_own(tmp_path, network, monkeypatch):
    session, variables, set_to = network
    status = Status(str(tmp_path), rank=0)
    saver = create_saving(create_store(tmp_path, variables), session, status=status)
    release = threading.Event()
    damage = BundleWriter.damage

    def slow(writer, prefix):
        assert release.wait(60)
        return damage(writer, prefix)

    monkeypatch.setattr(BundleWriter, "damage", slow)
    set_to(1)
    saver.begin(1)
    assert saver._background.step == 1
    assert layout.steps_in(str(tmp_path)) == []
    set_to(2)
    threading.Timer(0.2, release.set).start()
    saver.save(2)
    assert layout.steps_in(str(tmp_path)) == [2, 1]
    for step in (1, 2):
        assert_all_are(f"{tmp_path}/model.ckpt-{step}", step)
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 2
    newest = (tmp_path / "model.ckpt-2.index").stat().st_ino
    saver.save(2)  # It is saved.
    assert (tmp_path / "model.ckpt-2.index").stat().st_ino == newest


def test_where_memory_does_not_suffice_training_waits_and_is_told_once(
    tmp_path, network, monkeypatch
):
    session, variables, set_to = network
    saver = create_saving(create_store(tmp_path, variables), session)
    size = create_store(tmp_path, variables).copy(session, 1).bytes
    monkeypatch.setattr(free_memory, "available_bytes", lambda: 2 * size - 1)
    for step in (1, 2):
        set_to(step)
        saver.begin(step)
        assert saver._background.step is None
        assert_all_are(f"{tmp_path}/model.ckpt-{step}", step)
    (line,) = lines_of(saver)
    assert line.startswith("step 1: memory does not suffice for a copy of the variables, 0 MB of")
    monkeypatch.undo()
    set_to(3)
    saver.begin(3)
    saver.close()
    assert "step 3: checkpoints are saved in the background" in lines_of(saver)[1]
    assert saver.saved == 3


def test_an_operation_that_gets_no_memory_is_a_shortage(tmp_path, network):
    session, variables, _ = network
    store = create_store(tmp_path, variables)

    def fail():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    store.copy(session, 1)
    store._snapshot._run = fail
    with pytest.raises(Shortage, match="within this process's limits"):
        store.copy(session, 1)


def test_a_save_that_fails_is_told_and_the_next_one_is_made(tmp_path, network, monkeypatch):
    session, variables, set_to = network
    saver = create_saving(create_store(tmp_path, variables), session)
    set_to(1)
    saver.begin(1)
    saver.settle()

    def no_space(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(files, "sync", no_space)
        set_to(2)
        saver.begin(2)
        saver.settle()
        with pytest.raises(OSError, match="No space"):
            saver.save(2)  # Of what ends a run, the caller tells it.
    assert lines_of(saver)[-1] == (
        "step 2: no checkpoint was saved ([Errno 28] No space left on device); training goes on"
    )
    assert saver.saved == 1
    assert search.find_newest(str(tmp_path)).step == 1
    assert not list(tmp_path.glob(f".*{files.SUFFIX}"))
    set_to(3)
    saver.begin(3)
    saver.close()
    assert search.find_newest(str(tmp_path)).step == 3


@pytest.mark.parametrize(("ending", "offset"), [("data-00000-of-00001", 0), ("index", 40)])
def test_what_the_disk_has_changed_is_not_kept(tmp_path, network, monkeypatch, ending, offset):
    """One bit of a file differs when it is read back."""
    session, variables, _ = network
    monkeypatch.setattr(bundle, "_READ_BYTES", 4)  # A part for each variable.
    saver = create_saving(create_store(tmp_path, variables), session)
    write = BundleWriter.write

    def write_wrong(writer, prefix, values):
        write(writer, prefix, values)
        path = Path(f"{prefix}.{ending}")
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        path.write_bytes(content)

    saver.begin(1)
    saver.settle()
    assert saver.saved == 1
    monkeypatch.setattr(BundleWriter, "write", write_wrong)
    saver.begin(2)
    saver.settle()
    assert "step 2: no checkpoint was saved (it reads back damaged: " in lines_of(saver)[-1]
    assert layout.steps_in(str(tmp_path)) == [1]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 8, 1000, 4096])
def test_all_workers_read_requests_from_the_mean_of_float32(workers):
    for stops in {0, 1, workers // 2, workers}:
        for save in (False, True):
            sent = np.zeros(workers, np.float32)
            sent[workers - stops :] = encode_requests(Requests(True, False))
            sent[0] = encode_requests(Requests(stops == workers, save))
            as_sum = np.float32(np.sum(sent)) / np.float32(workers)
            of_parts = np.sum(sent * np.float32(1 / workers), dtype=np.float32)
            one_by_one = np.float32(0)
            for value in sent:
                one_by_one += value / np.float32(workers)
            for mean in (as_sum, of_parts, one_by_one):
                asked = read_requests(float(mean), workers)
                assert asked == Requests(stops > 0, save and not stops), (stops, save)


@pytest.mark.slow
def test_a_process_killed_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    done = run([sys.executable, str(ROOT / "tests/programs/killed_saves.py"), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(each["killed"] for each in found), found
    assert [each["step"] for each in found] == [1] * 7 + [2] * 3, found
    for each in found:
        assert each["values"] == [each["step"]], each
        assert each["skipped"] == [], each
        assert each["left"] == [
            "checkpoint",
            "checkpoints.json",
            "model.ckpt-4.data-00000-of-00001",
            "model.ckpt-4.index",
        ], each


def test_a_save_that_ends_after_a_failure_does_not_make_the_run_go_on(tmp_path):
    status = Status(str(tmp_path), rank=0)
    status.set("running", step=1)
    status.set("failed", reason="a reason")
    status.set("running", step=2)
    told = json.loads((tmp_path / "status.json").read_text())
    assert told == {"state": "failed", "step": 1, "reason": "a reason"}


def test_a_run_that_is_stopped_and_can_not_save_says_so(tmp_path, network, monkeypatch):
    session, variables, set_to = network
    status = Status(tmp_path, rank=0)
    console = Lines()
    setup = SimpleNamespace(
        session=session,
        train=None,
        store=create_store(tmp_path, variables),
        policy=None,
        plan=SimpleNamespace(total_steps=9, checkpoint_every_minutes=0),
    )
    asked = SimpleNamespace(reason="asked to stop by SIGTERM")
    protection = Protection(asked, create_watchdog(0, pytest.fail))
    guard = LoopGuard(Group(), setup, console, Written(), status, protection, done=0)
    set_to(1)
    guard.save(1)
    set_to(2)
    guard._saving.settle()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(setup.store, "save", no_space)
        guard.stop(2)
    guard.close()
    said = (
        "worker 0 was asked to stop by SIGTERM; this step could not be saved ([Errno 28] No space "
        "left on device)"
    )
    (line,) = [line for line in console.lines if "stopped" in line]
    assert line == (
        f"step 2: stopped, since {said}; the same command goes on from the last checkpoint"
    )
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["state"], told["reason"]) == ("preempted", f"step 2: {said}")
    assert search.find_newest(str(tmp_path)).step == 1
