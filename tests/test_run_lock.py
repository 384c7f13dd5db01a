"""One run at a time in a folder: with real processes, and with locks of other hosts."""

import json
import subprocess
import sys
import threading
import time

import pytest
from processes import ROOT, environment

from trainer.errors import UserError
from trainer.process.identity import Process
from trainer.safety import lock_holder, run_lock

HOLDS = """
import sys, time
from trainer.safety.run_lock import FileLock
FileLock(sys.argv[1], on_loss=print).take()
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def take(folder, **arguments):
    """The lock, which is taken, and the messages about that."""
    lock = run_lock.FileLock(str(folder), on_loss=pytest.fail, **arguments)
    return lock, lock.take()


def write_lock(folder, *, beats, **fields):
    other = lock_holder.of_this_process()._replace(**fields)
    (folder / "run.lock").write_text(lock_holder.as_text(other, beats))


def test_a_second_run_is_refused_with_the_firsts_host_and_process(tmp_path, holder):
    host = lock_holder.of_this_process().host
    with pytest.raises(UserError, match=rf"--logdir: .* process {holder.pid} on {host} has"):
        take(tmp_path)


def test_the_lock_of_a_process_that_was_killed_is_stale(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock, messages = take(tmp_path)
    assert f"process {holder.pid} on" in messages[0]
    assert "whose process is gone" in messages[0]
    lock.close()


def test_the_same_number_of_a_later_process_does_not_hold(tmp_path, holder):
    write_lock(tmp_path, beats=1, process=Process(holder.pid, start_ticks=1))
    lock, messages = take(tmp_path)
    assert f"process {holder.pid} on" in messages[0]
    assert "whose process is gone" in messages[0]
    lock.close()


def test_a_lock_is_given_back(tmp_path):
    lock, messages = take(tmp_path)
    assert messages == ()
    assert json.loads((tmp_path / "run.lock").read_text())["beats"] == 1
    lock.close()
    assert list(tmp_path.iterdir()) == []


def test_of_another_hosts_lock_the_beats_decide(tmp_path):
    write_lock(tmp_path, beats=1, host="elsewhere", identity="another host")
    closed = threading.Event()

    def beat():
        for beats in range(2, 100):
            if closed.wait(0.2):
                return
            write_lock(tmp_path, beats=beats, host="elsewhere", identity="another host")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on elsewhere has"):
            take(tmp_path, silence_sec=3)
    finally:
        closed.set()
        thread.join()
    lock, messages = take(tmp_path, silence_sec=1)
    assert "on elsewhere, which has not stirred for 1 s" in messages[0]
    lock.close()


@pytest.mark.processes
def test_of_several_that_find_a_stale_lock_one_gets_it(tmp_path):
    for _ in range(2):
        write_lock(tmp_path, beats=1, process=Process(2**22 + 1, start_ticks=1))
        code = (
            "import sys, time\n"
            "from trainer.safety.run_lock import FileLock\n"
            "from trainer.errors import UserError\n"
            "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
            "try:\n    FileLock(sys.argv[1], on_loss=print).take()\n"
            "except UserError:\n    sys.exit(3)\n"
            "print('held', flush=True)\n"
            "sys.stdin.read()\n"
        )
        begin = str(time.time() + 1)
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), begin],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        said = [run.stdout.readline() for run in runs]  # Who has it holds it until all have tried.
        assert sorted(said) == ["", "", "", "held\n"]
        for run in runs:
            run.communicate(timeout=30)
        assert sorted(run.returncode for run in runs) == [0, 3, 3, 3]


def test_whoever_lost_the_lock_hears_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_HEARTBEAT_SEC", 0.1)
    losses = []
    lock = run_lock.FileLock(str(tmp_path), on_loss=losses.append)
    assert lock.take() == ()
    write_lock(tmp_path, beats=1, host="elsewhere", identity="another host")
    end_sec = time.monotonic() + 10
    while not losses and time.monotonic() < end_sec:
        time.sleep(0.05)
    lock.close()
    assert len(losses) == 1
    assert (tmp_path / "run.lock").exists()  # It is the other's.


def test_a_lock_that_somebody_removes_is_there_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_HEARTBEAT_SEC", 0.1)
    lock, _ = take(tmp_path)
    (tmp_path / "run.lock").unlink()
    end_sec = time.monotonic() + 10
    while not (tmp_path / "run.lock").exists() and time.monotonic() < end_sec:
        time.sleep(0.05)
    assert lock_holder.read(tmp_path / "run.lock")[0] == lock_holder.of_this_process()
    lock.close()
    assert not (tmp_path / "run.lock").exists()
