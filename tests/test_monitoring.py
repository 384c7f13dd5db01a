"""Real runs whose workers or whose input are slow; and where the time of a run goes."""

import gzip
import json
import os
import re
import sys

import numpy as np
import pytest
import tiny
from processes import horovodrun
from processes import run as run_process
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from trainer.config import Config, RunConfig, TelemetryConfig
from trainer.errors import ConfigError
from trainer.plan import create_plan
from trainer.run import remarks

SLOW = ["-m", "trainer", *tiny.FLAGS[1:], "--model=slow:network", "--log_every=15"]
DELAY_MS = 200
STEPS_EACH = 30
PAUSES = ("report", "checkpoint", "evaluation", "histograms", "profile")


def read_lines(logdir):
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def slow_workers(tmp_path_factory):
    """A run on three workers; the first is slow for 30 steps, then the next, then the last."""
    logdir = tmp_path_factory.mktemp("slow_workers")
    flags = [*SLOW, f"--steps={3 * STEPS_EACH}", "--eval_every_epochs=0", f"--logdir={logdir}"]
    settings = {"SLOW_WORKERS_MS": str(DELAY_MS), "SLOW_WORKERS_STEPS": str(STEPS_EACH)}
    done = horovodrun(3, flags, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return logdir, done.stdout


@pytest.mark.processes
class TestSlowWorkers:
    def test_each_is_named_when_it_is_slow(self, slow_workers):
        _, console = slow_workers
        named = re.findall(r"worker (\d) of 3 \(.*\) is slow: (\d+)", console)
        assert [int(rank) for rank, _ in named] == [0, 1, 2]
        assert all(int(own_ms) >= DELAY_MS for _, own_ms in named)

    def test_the_gap_between_slowest_and_fastest_shows_it(self, slow_workers):
        logdir, _ = slow_workers
        steps = {line["step"]: line for line in read_lines(logdir) if "train/loss" in line}
        for rank in range(3):
            # Without the first of each: the first step of all is slow on every worker.
            mine = [steps[rank * STEPS_EACH + number] for number in range(6, STEPS_EACH + 1)]
            gaps = [
                step["perf/slowest_worker_step_ms"] - step["perf/fastest_worker_step_ms"]
                for step in mine
            ]
            assert np.median(gaps) > 0.75 * DELAY_MS
            assert np.median([step["perf/slowest_worker"] for step in mine]) == rank
            if rank:
                waits = [step["perf/wait_for_slowest_ms"] for step in mine]
                assert np.median(waits) > 0.75 * DELAY_MS

    def test_every_worker_says_hello_and_rank_0_prints(self, slow_workers):
        _, console = slow_workers
        hellos = re.findall(r"\[0\]<stdout>:worker (\d) of 3 \((.+), local rank (\d)\): ", console)
        assert [(rank, local_rank) for rank, _, local_rank in hellos] == [
            ("0", "0"),
            ("1", "1"),
            ("2", "2"),
        ]
        assert "[1]<stdout>" not in console
        assert "[2]<stdout>" not in console


@pytest.mark.processes
def test_a_slow_input_is_told_as_waiting_for_data(tmp_path):
    """On one core: there, one thread reads; several would finish their batches together."""
    flags = [*tiny.FLAGS, "--dataset=slow:dataset", "--steps=10", f"--logdir={tmp_path}"]
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable]
    done = run_process([*command, "-m", "trainer", *flags], SLOW_INPUT_MS="1000")
    assert done.returncode == 0, done.stderr
    steps = [line for line in read_lines(tmp_path) if "train/loss" in line][4:]
    waits, times = (
        np.median([line[tag] for line in steps])
        for tag in ("perf/data_wait_ms", "perf/step_time_ms")
    )
    assert 600 <= waits <= times  # The next batch is read during a step.
    assert waits > times / 2  # Of which the small network takes little, on a busy machine too.


@pytest.mark.processes
class TestWholeRun:
    def test_step_times_and_pauses_are_the_wall_time(self, run):
        """Against the other clock, which stamps each step."""
        lines = read_lines(run)
        steps = [line for line in lines if "train/loss" in line]
        assert [line["step"] for line in steps] == list(range(1, 61))
        wall_sec = steps[-1]["wall_time"] - steps[0]["wall_time"]
        step_ms = sum(line["perf/step_time_ms"] for line in steps[1:])
        pause_ms = {
            name: sum(line.get(f"perf/{name}_ms", 0) for line in lines if line["step"] < 60)
            for name in PAUSES
        }
        assert all(pause_ms.values()), pause_ms
        assert (step_ms + sum(pause_ms.values())) / 1000 == pytest.approx(wall_sec, rel=0.01)

    def test_images_per_sec_are_images_by_seconds(self, run):
        result = json.loads((run / "result.json").read_text())["result"]
        steps = [line for line in read_lines(run) if "train/loss" in line]
        timed = steps[result["warmup_steps"] :]
        seconds = sum(line["perf/step_time_ms"] for line in timed) / 1000
        images = result["global_batch_size"] * len(timed)
        assert result["images_per_sec"] == pytest.approx(images / seconds, rel=1e-6)
        (last,) = [line for line in read_lines(run) if "perf/mean_images_per_sec" in line]
        assert last["perf/mean_images_per_sec"] == result["images_per_sec"]

    def test_memory_is_told_at_each_report(self, run):
        peaks = [
            line["perf/peak_resident_mib"]
            for line in read_lines(run)
            if "perf/peak_resident_mib" in line
        ]
        assert (np.diff(peaks) > -1).all()  # The kernel's count is only about right.
        assert 100 < peaks[0] < 10_000

    def test_gradient_norms_agree_with_the_steps_own(self, run):
        """The histograms' are of the same averaged gradients."""
        for step in (20, 40, 60):
            lines = [line for line in read_lines(run) if line["step"] == step]
            values = {tag: value for line in lines for tag, value in line.items()}
            norms = [value for tag, value in values.items() if tag.startswith("gradient_norm/")]
            assert len(norms) == 8
            assert np.linalg.norm(norms) == pytest.approx(values["train/gradient_norm"], rel=1e-4)

    def test_the_profile_opens(self, run):
        (path,) = (run / "plugins" / "profile" / "steps_42_to_44").glob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
        events = sum(len(line.events) for plane in space.planes for line in plane.lines)
        text = gzip.decompress((run / "profile" / "steps_42_to_44.trace.json.gz").read_bytes())
        trace = json.loads(text)["traceEvents"]
        durations = [event for event in trace if event["ph"] == "X"]
        assert len(durations) == events
        names = {event["name"] for event in durations}
        assert any("Conv2D" in name for name in names), sorted(names)[:50]
        spans = [event["ts"] + event["dur"] for event in durations if "Conv2D" in event["name"]]
        starts = [event["ts"] for event in durations if "Conv2D" in event["name"]]
        steps = {line["step"]: line for line in read_lines(run) if "train/loss" in line}
        seconds = steps[44]["wall_time"] - steps[41]["wall_time"]
        assert 0 < (max(spans) - min(starts)) / 1e6 < seconds

    def test_horovods_timeline_opens(self, run):
        text = (run / "profile" / "steps_42_to_44.horovod.json").read_text().strip()
        if not text.endswith("]"):
            text = text.rstrip(",") + "]"  # Chrome and Perfetto take it without.
        names = {event.get("name") for event in json.loads(text)}
        assert "ALLREDUCE" in names or any("ALLREDUCE" in str(name) for name in names), names


@pytest.mark.parametrize("steps", ["3", "5:3", "0:2", "a:b", "1:2:3", ":"])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(ConfigError, match="--profile_steps: must be A:B with 1 <= A <= B"):
        TelemetryConfig(profile_steps=steps)


def test_what_needs_a_folder_says_so():
    assert list(TelemetryConfig(profile_steps="7:9").profile_range) == [7, 8, 9]
    for fields in ({"profile_steps": "7:9"}, {"histogram_every": 5}):
        with pytest.raises(ConfigError, match=f"--logdir: must be given with --{min(fields)}"):
            Config(telemetry=TelemetryConfig(**fields))


@pytest.mark.processes
def test_the_time_to_the_first_step_is_told_by_phase(run):
    lines = (run / "console.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "first step after" in line]
    start_sec = json.loads((run / "result.json").read_text())["result"]["start_sec"]
    before_it = ["launcher", "imports", "connect", "checks", "data", "graph", "restore"]
    assert list(start_sec) == [*before_it, "broadcast", "first step"]
    told = ", ".join(f"{name} {sec:.1f}" for name, sec in start_sec.items())
    assert line.endswith(f"first step after {sum(start_sec.values()):.1f} s: {told}")
    # What has begun by then, and what comes after.
    phases = [line.rsplit(">:", 1)[-1] for line in lines]
    assert phases.index("loading TensorFlow") < phases.index("connecting 2 workers")
    before = next(i for i, each in enumerate(lines) if "optimizes the graph" in each)
    assert before < lines.index(line) < next(i for i, x in enumerate(lines) if "step 7/" in x)


@pytest.mark.parametrize(
    ("flags", "done", "told"),
    [
        ({"profile_steps": "2:4"}, 0, ""),
        ({"profile_steps": "3:10"}, 2, ""),
        ({"profile_steps": "11:12"}, 0, "--profile_steps=11:12 traces nothing"),
        ({"profile_steps": "2:4"}, 2, "--profile_steps=2:4 traces nothing"),
        ({"profile_steps": "9:12"}, 0, "--profile_steps=9:12 traces fewer steps"),
        ({"histogram_every": 10}, 0, ""),
        ({"histogram_every": 11}, 0, "--histogram_every=11 writes nothing"),
        ({"histogram_every": 4}, 8, "--histogram_every=4 writes nothing"),
    ],
)
def test_steps_that_do_not_come_are_told(flags, done, told):
    plan = create_plan(
        RunConfig(steps=10), global_batch_size=1, train_examples=5, validation_examples=0
    )
    lines = remarks.describe_telemetry(TelemetryConfig(**flags), plan, done=done)
    expected = (f"{told}: the run makes steps {done + 1} to 10",) if told else ()
    assert lines == expected
