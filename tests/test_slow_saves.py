"""Saves that are slower than the steps between them: one at a time, told, and left out."""

import contextlib
import dataclasses
import threading
import time

import pytest
from test_saving import create_saving, lines_of

from trainer.checkpoints import background
from trainer.checkpoints.background import BackgroundSave
from trainer.checkpoints.snapshot import Copied
from trainer.run import saving


@dataclasses.dataclass
class SlowStore:
    """A store whose saves end when they are told to. Two at a time are an error."""

    keeps = True
    release: threading.Semaphore = dataclasses.field(default_factory=lambda: threading.Semaphore(0))
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    copied: list = dataclasses.field(default_factory=list)
    saved: list = dataclasses.field(default_factory=list)
    prepared: list = dataclasses.field(default_factory=list)
    preparing: threading.Event = dataclasses.field(default_factory=threading.Event)

    def prepare_copy(self, session):
        del session
        assert self.preparing.wait(60)
        self.prepared.append(threading.current_thread())
        raise RuntimeError("not told: the first copy raises its own")

    def copy(self, session, step):
        del session
        self.copied.append(step)

        def save():
            assert self.turn.acquire(blocking=False)
            assert self.release.acquire(timeout=60)
            self.saved.append(step)
            self.turn.release()

        return Copied(8_000_000, save)


@contextlib.contextmanager
def released_soon(store):
    """Ends the save that is under way while the next one waits for it."""
    timer = threading.Timer(0.5, store.release.release)
    timer.start()
    yield
    timer.join()


def test_a_disk_slower_than_the_saves_makes_them_rarer_and_never_two_at_once(monkeypatch):
    monkeypatch.setattr(saving, "_LONG_SEC", 0.1)
    store = SlowStore()
    saver = create_saving(store)
    saver.begin(1)
    for step in (2, 3, 4):
        assert len(store.copied) == step - 1
        with released_soon(store):
            saver.begin(step)
        assert store.saved == list(range(1, step))
    waits = [line for line in lines_of(saver) if "waited" in line]
    assert [line.split(":")[0] for line in waits] == ["step 2", "step 3", "step 4"]
    assert "From now on, saves make no pauses" in waits[0]  # Which may have been what was slow.
    assert "the disk is slower than the saves" not in waits[0] + waits[1]
    assert "the disk is slower than the saves" in waits[2]
    saver.begin(5)  # Left out, without waiting.
    saver.begin(6)
    assert store.copied == [1, 2, 3, 4]
    store.release.release()
    saver.settle()
    assert saver.saved == 4
    saver.begin(7)
    store.release.release()
    saver.close()
    assert store.saved == [1, 2, 3, 4, 7]
    assert lines_of(saver)[-1] == "2 checkpoints were left out: the disk is too slow"


@pytest.mark.parametrize("waiting", ["begin", "save", "close"])
def test_saves_are_prepared_once_beside_the_steps_and_wait_for_it(waiting):
    store = SlowStore()
    store.save = lambda session, step: store.copied.append(step)
    saver = create_saving(store)
    for step in (1, 2, 3):
        saver.finish_step(step)  # It would wait for ever.
    assert store.prepared == []
    threading.Timer(0.2, store.preparing.set).start()
    getattr(saver, waiting)(*[3] * (waiting != "close"))
    assert len(store.prepared) == 1
    assert store.prepared[0] is not threading.current_thread()
    assert store.copied == [3] * (waiting != "close")
    store.release.release()
    saver.finish_step(4)
    saver.close()
    assert len(store.prepared) == 1


def test_who_keeps_nothing_prepares_nothing():
    store = SlowStore()
    store.keeps = False
    store.preparing.set()
    saver = create_saving(store)
    saver.finish_step(1)
    saver.close()
    assert store.prepared == []


def test_what_is_no_fault_of_the_disk_ends_the_run():
    store = SlowStore()
    saver = create_saving(store)
    store.copy = lambda session, step: Copied(0, lambda: 1 / 0)
    saver.begin(1)
    saver._background._thread.join()
    with pytest.raises(ZeroDivisionError):
        saver.finish_step(2)


def test_the_clock_asks_for_a_save_once_it_is_time_and_none_is_under_way(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    store = SlowStore()
    store.preparing.set()
    saver = create_saving(store, every_minutes=2.0)
    assert not saver.is_due_by_time()
    now[0] += 120
    assert saver.is_due_by_time()
    saver.begin(5)
    now[0] += 500
    assert not saver.is_due_by_time()  # One is under way.
    store.release.release()
    saver.settle()
    assert saver.is_due_by_time()
    assert not create_saving(store).is_due_by_time()


class Waits:
    """An event that is never set, and keeps for how long it is waited for."""

    def __init__(self):
        self.sec = []

    def wait(self, timeout):
        self.sec.append(timeout)


@pytest.mark.parametrize(("share", "expected"), [(0.1, [1.8, 0, 7.2]), (1.0, [0, 0, 0])])
def test_a_thread_pauses_as_its_share_of_a_core_asks(monkeypatch, share, expected):
    used_sec = iter([5.0, 5.2, 5.2, 6.0])
    monkeypatch.setattr(background.time, "thread_time", lambda: next(used_sec))
    waits = Waits()
    pace = background.Pace(share, waits)
    for _ in expected:
        pace.rest()
    assert waits.sec == pytest.approx(expected)


def test_who_waits_for_a_save_ends_its_pauses():
    works = threading.Event()

    def save():
        end_sec = time.thread_time() + 0.01
        while time.thread_time() < end_sec:
            pass
        works.set()
        background.rest()

    saves = BackgroundSave(share=1e-6)  # Of 10 ms of work: three hours.
    for step in (1, 2):
        saves.begin(step, save)
        assert works.wait(60)
        assert saves.step == step
        assert saves.take(wait=False) is None
        assert saves.take(wait=True).error is None
        works.clear()
    background.rest()  # Not of a save: no pause.
