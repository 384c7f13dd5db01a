"""Starts training runs of two workers that things are done to."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

from shared import process_tree

from processes import ROOT, environment

HOROVODRUN = ["horovodrun", "-np", "2"]
MODULE = [sys.executable, "-m", "trainer"]
FAULTY = [sys.executable, "tests/programs/faulty_trainer.py"]
FLAGS = [
    "--model=faulty_data:network",
    "--dataset=faulty_data:dataset",
    "--image_size=16",
    "--batch_size=8",
    "--augment=none",
    "--batch_norm_decay=0.9",
    "--base_learning_rate=1",
    "--log_every=1",
    "--checkpoint_every=5",
    "--eval_every_epochs=4",
    "--deterministic",
]
PATIENCE_SEC = 200


class Run:
    """A command that runs, and what it has said up to now."""

    def __init__(self, command, **extra):
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        self._lines.extend(self.process.stdout)

    def output(self):
        return "".join(self._lines)

    def wait_for(self, text):
        """Waits until the run has said something."""
        self.wait_until(lambda: text in self.output(), text)

    def wait_until(self, is_so, what):
        end_sec = time.monotonic() + PATIENCE_SEC
        while not is_so():
            assert self.process.poll() is None, f"{what}: never\n{self.output()}"
            assert time.monotonic() < end_sec, f"{what}: not in time\n{self.output()}"
            time.sleep(0.01)

    def workers(self):
        """Processes by rank."""
        return process_tree.workers_below(self.process.pid)

    def wait(self):
        """Waits for the end of all that it has started; returns the exit status."""
        status = self.process.wait(timeout=PATIENCE_SEC)
        self._reader.join(timeout=PATIENCE_SEC)
        return status

    def close(self):
        pid = self.process.pid
        process_tree.send(signal.SIGKILL, (pid, *process_tree.below(pid)))
        self.process.wait()
        self._reader.join(timeout=PATIENCE_SEC)
        self.process.stdout.close()


@contextlib.contextmanager
def started(command, **extra):
    """A run, which is ended in any case."""
    run = Run(command, **extra)
    try:
        yield run
    finally:
        run.close()


def finish(command, **extra):
    """Runs a command to its end: (exit status, output)."""
    with started(command, **extra) as run:
        status = run.wait()
        return status, run.output()


def read_status(logdir):
    try:
        return json.loads((logdir / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"state": None, "step": 0, "reason": None}


def is_gone(pids):
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)
