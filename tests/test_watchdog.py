"""The watchdog and the orphan watch in real processes that hang; none imports TensorFlow."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import ROOT, environment

from trainer import exit_status

pytestmark = pytest.mark.processes

GUARDED = """
import os, sys, threading, time
from trainer.safety.status import Status
from trainer.safety.sudden_exit import SuddenExit
from trainer.safety.watchdog import create_watchdog

def reads_for_ever():
    time.sleep(1000)

exit_now = SuddenExit(Status(os.environ["FOLDER"], rank=0), rank=0, size=1)
guard = create_watchdog(float(sys.argv[1]), exit_now)
for step in range(1, 20):
    time.sleep(0.02)
    guard.finish_step(step)
print("steps are over", flush=True)
"""


def run_guarded(tmp_path, limit_sec, then):
    return subprocess.run(
        [sys.executable, "-c", GUARDED + then, str(limit_sec)],
        cwd=ROOT,
        env=environment(FOLDER=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_hang_ends_with_stacks_of_all_threads(tmp_path):
    hang = "threading.Thread(target=reads_for_ever).start()\nthreading.Event().wait()"
    done = run_guarded(tmp_path, 1.0, hang)
    assert done.returncode == 79
    assert "no progress for 1 s (--watchdog_seconds) in step 20, after step 19" in done.stderr
    assert "in reads_for_ever" in done.stderr
    assert "in wait" in done.stderr
    assert '"state": "failed"' in (tmp_path / "status.json").read_text()


def test_a_long_phase_may_take_longer(tmp_path):
    done = run_guarded(tmp_path, 0.5, "with guard.long_phase('saving'): time.sleep(1.5)")
    assert done.returncode == 0, done.stderr


def test_a_step_may_take_many_times_the_longest_one_before(tmp_path):
    slow = "time.sleep(0.2); guard.finish_step(20); time.sleep(1.2); guard.finish_step(21)"
    assert run_guarded(tmp_path, 0.5, slow).returncode == 0


def test_a_long_phase_may_take_as_long_as_its_parts_go_on(tmp_path):
    """Six times the limit for each batch of an evaluation, and for the first step of a graph."""
    parts = (
        "with guard.long_phase('the evaluation'):\n"
        "    for _ in range(4): time.sleep(1.4); guard.progress()\n"
        "guard.begin_graph(); time.sleep(1.4); guard.finish_step(20); time.sleep(1000)"
    )
    done = run_guarded(tmp_path, 0.4, parts)
    assert done.returncode == exit_status.HUNG
    assert "in step 21, after step 20" in done.stderr


def test_a_suspended_process_is_not_taken_to_hang(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED + "time.sleep(0.5); guard.finish_step(20)", "1.0"],
        cwd=ROOT,
        env=environment(FOLDER=str(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "steps are over\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_without_a_limit_there_is_no_watch(tmp_path):
    assert run_guarded(tmp_path, 0, "time.sleep(0.3)").returncode == 0
    assert not (tmp_path / "status.json").exists()


WORKER = """
import os, time
from trainer.safety import orphan_watch
from trainer.safety.orphan_watch import OrphanWatch
from trainer.safety.preemption import StopRequest
from trainer.safety.status import Status
from trainer.safety.sudden_exit import SuddenExit

exit_now = SuddenExit(Status(None, rank=0), rank=0, size=1)
orphan_watch._GRACE_SEC = 2
stop = StopRequest(exit_now)
watch = OrphanWatch(stop, exit_now)
print("worker", os.getpid(), flush=True)
while True:
    time.sleep(0.1)
    if stop.reason and os.environ.get("SAVES"):
        print("saved", flush=True)
        break
"""
# A launcher's process, a shell that stays, a program that has the rank, and the worker.
LAUNCHER = """
import os, subprocess, sys
wrapper = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
shell = '"$0" -c "$1" "$2"; exit $?'
subprocess.run(
    ["sh", "-c", shell, sys.executable, wrapper, sys.argv[1]],
    env={**os.environ, "HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"},
)
"""


@pytest.mark.parametrize("saves", ["", "yes"])
def test_a_worker_ends_after_its_launcher_although_its_shell_lives(saves):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, WORKER],
        cwd=ROOT,
        env=environment(SAVES=saves),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    name, pid = launcher.stdout.readline().split()
    assert name == "worker"
    launcher.kill()
    # The worker, and its shell, hold the pipe's other end until they end.
    reader = threading.Thread(target=lambda: rest.append(launcher.stdout.read()))
    rest = []
    reader.start()
    reader.join(timeout=15)
    assert not reader.is_alive()
    assert rest == ["saved\n" if saves else ""]
    assert not os.path.exists(f"/proc/{pid}")
    launcher.wait()
    launcher.stdout.close()
