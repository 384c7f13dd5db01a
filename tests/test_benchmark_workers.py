"""scripts/benchmark_workers.py, with a trainer and a horovodrun that only sleep."""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import benchmark_workers
import pytest
from processes import ROOT, environment

from trainer.errors import UserError
from trainer.process import identity

pytestmark = pytest.mark.processes

# A trainer whose steps take as long as a flag says, or longer where it was stopped.
TRAINER = """
import json, pathlib, sys, time
flags = dict(flag.lstrip("-").partition("=")[::2] for flag in sys.argv[1:])
nominal_ms = float(flags["benchmark_ms" if "benchmark" in flags else "ms"])
logs = pathlib.Path(flags["logdir"])
logs.mkdir(exist_ok=True)
steps_ms = []
with (logs / "metrics.jsonl").open("w") as metrics:
    for _ in range(int(flags.get("steps") or flags["benchmark_steps"])):
        began = time.time()
        time.sleep(nominal_ms / 1000)
        ended = time.time()
        took_ms = 1000 * (ended - began)
        steps_ms.append(took_ms if took_ms > 200 else nominal_ms)
        line = {"wall_time": ended, "began": began, "perf/step_time_ms": steps_ms[-1]}
        print(json.dumps(line), file=metrics, flush=True)
steps = {"durations_sec": [step_ms / 1000 for step_ms in steps_ms]}
result = {"passes": {"train_step": steps}}
pathlib.Path(flags["result_json"]).write_text(json.dumps({"result": result}))
"""

# A horovodrun whose first worker does what the trainer does, and is waited for; the others sleep.
HOROVODRUN = """#!/bin/sh
for worker in $(seq 2 $2); do sleep 1000 & done
shift 2
"$@" &
echo $$ $(pgrep -P $$) > "$PIDS.new" && mv "$PIDS.new" "$PIDS"
wait $!
"""

PROGRAM = """
import sys
import benchmark_workers
from shared import program
trainer, benchmark_workers._HOROVODRUN = sys.argv[1:3]
del sys.argv[1:3]
benchmark_workers._TRAINER = (sys.executable, "-c", trainer)
program.run(benchmark_workers.main)
"""


@pytest.fixture
def horovodrun(tmp_path, monkeypatch):
    path = tmp_path / "horovodrun"
    path.write_text(HOROVODRUN)
    path.chmod(0o755)
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr(benchmark_workers, "_HOROVODRUN", str(path))
    return path


@pytest.fixture
def options():
    return argparse.Namespace(
        workers=2,
        batch_size=4,
        rounds=3,
        turn_sec=0.5,
        steps=60,
        flags=["--ms=20", "--benchmark_ms=16"],
    )


@pytest.fixture
def contest(tmp_path, monkeypatch, horovodrun, options):
    monkeypatch.setattr(benchmark_workers, "_TRAINER", (sys.executable, "-c", TRAINER))
    folder = tmp_path / "launches"
    folder.mkdir()
    return benchmark_workers.Contest(options, folder)


def whole_steps(folder):
    """Returns when the steps that were not stopped began and ended."""
    lines = (folder / "logs" / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    times = [(step["began"], step["wall_time"]) for step in steps]
    return [(began, ended) for began, ended in times if ended - began < 0.06]


def overlap(some, others):
    return [
        (one, other)
        for one, other in itertools.product(some, others)
        if max(one[0], other[0]) < min(one[1], other[1])
    ]


def ends(pid):
    """Returns whether a process ends soon: what is killed takes a moment."""
    end_sec = time.monotonic() + 10
    while identity.find(int(pid)) and time.monotonic() < end_sec:
        time.sleep(0.01)
    return identity.find(int(pid)) is None


def test_alone_and_together_take_turns(contest, tmp_path):
    found = contest.alone_and_together()
    # Two workers of 4 images and 20 ms each; of `together` one launch tells for both.
    assert found == {"alone": [400] * 3, "together": [400] * 3}
    first, second, together = (whole_steps(tmp_path / "launches" / name) for name in "123")
    assert min(map(len, (first, second, together))) > 10
    assert overlap(first, second)  # At once.
    assert not overlap(first + second, together)
    pids = (tmp_path / "pids").read_text().split()
    assert all(ends(pid) for pid in pids)


def test_loop_and_step_take_turns_until_both_have_ended(contest, tmp_path):
    assert contest.loop_and_step() == {"loop": [400], "step": [500]}
    loop, step = (whole_steps(tmp_path / "launches" / name) for name in "12")
    assert min(map(len, (loop, step))) > 10
    assert not overlap(loop, step)
    assert overlap([(loop[0][0], loop[-1][1])], step)  # Not one behind the other.


@pytest.mark.parametrize(
    ("steps", "ms", "line"),
    [(4, 600, "--turn_sec: must be longer"), (10, 1, "--steps: must be more")],
)
def test_what_would_be_no_result_is_none(contest, options, steps, ms, line):
    options.steps = steps
    options.flags = [f"--ms={ms}", f"--benchmark_ms={ms}"]
    with pytest.raises(UserError, match=line):
        contest.loop_and_step()


def test_workers_that_were_stopped_when_their_launcher_died_are_ended(tmp_path, horovodrun):
    flags = ["--turn_sec=1", "--rounds=20", "--workers=2", "--", "--ms=20", "--benchmark_ms=20"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, TRAINER, str(horovodrun), *flags],
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT}/scripts", TMPDIR=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pids = tmp_path / "pids"
        end_sec = time.monotonic() + 60
        while not (pids.exists() and is_stopped(pids.read_text().split()[-1])):
            assert process.poll() is None
            assert time.monotonic() < end_sec
            time.sleep(0.01)
        launcher, *workers = map(int, pids.read_text().split())
        assert len(workers) == 2
        os.kill(launcher, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 1, said
    assert f"{horovodrun} -np 2" in said
    assert "status -9" in said
    assert all(ends(pid) for pid in workers)


def is_stopped(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
