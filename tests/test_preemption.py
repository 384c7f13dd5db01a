"""Requests to stop, in real processes with real signals; none of them imports TensorFlow."""

import signal
import subprocess
import sys
import time

import pytest
from processes import ROOT, environment

pytestmark = pytest.mark.processes

# Its main thread is within C, where no Python handler runs, for half a second at a time.
LISTENS = """
import hashlib, sys, time
from trainer.safety.preemption import StopRequest
from trainer.safety.status import Status
from trainer.safety.sudden_exit import SuddenExit

stop = StopRequest(SuddenExit(Status(None, rank=0), rank=0, size=1))
with stop.listen():
    print("ready", flush=True)
    while True:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
        if (stop.reason and "wait" not in sys.argv) or "leave slowly" in sys.argv:
            break
print(stop.reason, flush=True)
if "leave slowly" in sys.argv:
    sys.stdin.read()
"""


@pytest.fixture
def listen():
    processes = []

    # A test that has listened in this process has left it ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def start(*arguments, program=()):
        process = subprocess.Popen(
            [*program, sys.executable, "-c", LISTENS, *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_is_a_request(listen, name):
    process = listen()
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == f"asked to stop by {name}\n"
    assert err == (
        f"slim-horovod: worker 0 of 1: asked to stop by {name}: "
        "the run stops after this step, and saves\n"
    )


def test_under_nohup_a_run_outlives_its_terminal(listen):
    process = listen("wait", program=["nohup"])
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    assert "asked to stop" not in process.communicate()[1]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_does_not_end_a_worker_that_is_leaving_already(listen, name):
    """As when all workers have stopped, since another one was asked to."""
    process = listen("leave slowly")
    assert process.stdout.readline() == "None\n"
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_second_interrupt_leaves_at_once(listen):
    process = listen("wait")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("interrupted twice; it ends with status 130")


def test_interrupts_that_come_together_are_one(listen):
    """As from a launcher that signals its processes, and their group."""
    process = listen()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.startswith("asked to stop by SIG")
