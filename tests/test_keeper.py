"""horovodrun's own way to end a worker, on workers whose shell has and has not stayed."""

import subprocess
import sys

import pytest
from horovod.runner.common.util import safe_shell_exec
from processes import ROOT, environment

pytestmark = pytest.mark.processes

WORKER = """
import os, time
from trainer.process import keeper
from trainer.safety.preemption import StopRequest
from trainer.safety.status import Status
from trainer.safety.sudden_exit import SuddenExit

keeper.stay_behind()
stop = StopRequest(SuddenExit(Status(None, rank=0), rank=0, size=1))
with stop.listen():
    print("ready", flush=True)
    while not stop.reason:
        time.sleep(0.05)
time.sleep(2)
print("saved", flush=True)
os._exit(75)
"""


@pytest.mark.parametrize("shell", ["stays", "becomes the worker"])
def test_a_worker_has_time_to_save_when_horovodrun_ends_it(shell):
    command = [sys.executable, "-c", WORKER]
    if shell == "stays":
        command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(HOROVOD_RANK="0", HOROVOD_SIZE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        safe_shell_exec.terminate_executor_shell_and_children(process.pid)
        assert process.stdout.read() == "saved\n"


def test_the_keeper_ends_as_its_worker_and_passes_signals_on():
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=ROOT,
        env=environment(HOROVOD_RANK="0", HOROVOD_SIZE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert out == "saved\n"
    assert "asked to stop by SIGTERM" in err
    assert process.returncode == 75


def test_without_horovodrun_nobody_stays_behind():
    code = (
        "import os; from trainer.process import keeper; before = os.getpid()\n"
        "keeper.stay_behind()\n"
    )
    code += "print(os.getpid() == before)"
    clean = {k: v for k, v in environment().items() if not k.startswith("HOROVOD_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
