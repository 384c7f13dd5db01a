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

from trainer.config import UserError
from trainer.safety import process_identity

pytestmark = pytest.mark.processes

# A trainer whose steps take as long as a flag says, or longer where it was stopped.
TRAINER = """
import json, pathlib, statistics, sys, time
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
found = {"step_time_ms": {"p50": statistics.median(steps_ms)}}
result = {"passes": {"train_step": found}} if "benchmark" in flags else found
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
import benchmark_workers, program
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
    """When the steps that were not stopped began and ended."""
    lines = (folder / "logs" / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(s["began"], s["wall_time"]) for s in steps if s["perf/step_time_ms"] < 200]


def overlap(some, others):
    return [
        (one, other)
        for one, other in itertools.product(some, others)
        if max(one[0], other[0]) < min(one[1], other[1])
    ]


def has_ended(pid):
    return process_identity.find(pid) is None


def test_alone_and_together_take_turns(contest, tmp_path):
    found = contest.take_turns()
    # Two workers of 4 images and 20 ms each; of `together` one launch tells for both.
    assert found == {"alone": [400] * 3, "together": [400] * 3}
    first, second, together = (whole_steps(tmp_path / "launches" / name) for name in "123")
    assert min(map(len, (first, second, together))) > 20
    assert overlap(first, second)  # At once.
    assert not overlap(first + second, together)
    pids = (tmp_path / "pids").read_text().split()
    assert all(has_ended(int(pid)) for pid in pids)


def test_loop_and_step_take_turns_until_both_have_ended(contest, tmp_path):
    assert contest.loop_and_step() == pytest.approx({"loop": 400, "step": 500})
    loop, step = (whole_steps(tmp_path / "launches" / name) for name in "12")
    assert min(map(len, (loop, step))) > 50
    assert not overlap(loop, step)
    assert overlap([(loop[0][0], loop[-1][1])], step)  # Not one behind the other.


def test_interrupted_steps_are_no_result(contest, options):
    options.steps = 5
    options.flags[0] = "--ms=190"
    with pytest.raises(UserError, match="--turn_sec, --steps: must be more"):
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
    with process:
        pids = tmp_path / "pids"
        while not (pids.exists() and is_stopped(pids.read_text().split()[-1])):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        launcher, *workers = map(int, pids.read_text().split())
        assert len(workers) == 2
        os.kill(launcher, signal.SIGKILL)
        said = process.stderr.read()
        assert process.wait(timeout=60) == 1, said
    assert f"{horovodrun} -np 2" in said
    assert "status -9" in said
    assert all(has_ended(pid) for pid in workers)


def is_stopped(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
