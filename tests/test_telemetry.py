"""Writers read back from disk; what hurts them does not hurt the run."""

import io
import json
import math
import os
import time

import pytest
from tensorboard.backend.event_processing import event_accumulator, event_file_loader
from tensorboard.plugins.custom_scalar import layout_pb2

from trainer.config import RunConfig
from trainer.distributed import Group
from trainer.graph.train_step import StepMetrics
from trainer.plan import create_plan
from trainer.telemetry import console, slow_worker, step_log, tags
from trainer.telemetry.memory_use import MemoryUse
from trainer.telemetry.pages import custom_scalars
from trainer.telemetry.step import Step
from trainer.telemetry.writers import background, json_lines, protocol
from trainer.telemetry.writers.run_writer import create_writer


def read_events(logdir):
    events = event_accumulator.EventAccumulator(str(logdir), {"scalars": 0})
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def write_steps(logdir, steps, **settings):
    writer = create_writer(str(logdir), rank=0, **settings)
    for step in steps:
        writer.write(step, {"a": step / 2, "b": -step}, wall_time=1000.0 + step)
    writer.close()


def test_events_and_lines_hold_what_was_written(tmp_path):
    write_steps(tmp_path, range(1, 4))
    assert read_events(tmp_path) == {
        "a": [(1, 0.5), (2, 1.0), (3, 1.5)],
        "b": [(1, -1.0), (2, -2.0), (3, -3.0)],
    }
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {"step": 3, "wall_time": 1003.0, "a": 1.5, "b": -3}


def test_after_a_resume_each_step_is_there_once(tmp_path):
    write_steps(tmp_path, range(1, 8))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("\0\0}\n")  # Left by a power cut.
        file.write('{"step": 8, "wall_ti')  # Cut, by a kill.
    write_steps(tmp_path, range(4, 10), first_step=4)
    assert [step for step, _ in read_events(tmp_path)["a"]] == list(range(1, 10))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 10))


def test_a_run_that_starts_afresh_in_its_folder_shows_its_own_steps(tmp_path):
    write_steps(tmp_path, range(1, 8), first_step=1)
    write_steps(tmp_path, range(1, 4), first_step=1)
    assert [step for step, _ in read_events(tmp_path)["a"]] == [1, 2, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_who_writes_beside_a_run_takes_nothing_away(tmp_path):
    write_steps(tmp_path, range(1, 8), first_step=1)
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(2, {"c": 3.0}, wall_time=0.0)
    writer.close()
    events = read_events(tmp_path)
    assert len(events["a"]) == 7
    assert events["c"] == [(2, 3.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8


def test_who_writes_beside_a_run_that_was_killed_leaves_its_torn_line_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "wall_ti')
    write_steps(tmp_path, [3])
    first, torn, last = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(first)["step"], json.loads(last)["step"]) == (1, 3)
    assert torn == '{"step": 2, "wall_ti'


def test_a_run_goes_on_in_a_new_file_after_another_process_has_begun_one(tmp_path):
    run = create_writer(str(tmp_path), rank=0, first_step=1)
    for step in (1, 2):
        run.write(step, {"a": step}, wall_time=0.0)
        run.flush()
    assert len(list(tmp_path.glob("events.*"))) == 1
    write_steps(tmp_path, [2])
    for step in (3, 4):
        run.write(step, {"a": step}, wall_time=0.0)
        run.flush()
    run.close()
    files = sorted(path.name for path in tmp_path.glob("events.*"))
    steps = [
        [
            event.step
            for event in event_file_loader.EventFileLoader(f"{tmp_path}/{name}").Load()
            if event.HasField("summary")
        ]
        for name in files
    ]
    assert steps == [[1, 2], [2], [3, 4]]


def test_a_restarted_run_drops_old_steps_though_another_process_wrote_before_it(tmp_path):
    write_steps(tmp_path, range(1, 8), first_step=1)
    run = create_writer(str(tmp_path), rank=0, first_step=4)
    run.flush()
    beside = create_writer(str(tmp_path), rank=0)
    beside.write(3, {"c": 1.0}, wall_time=0.0)
    beside.close()
    for step in range(4, 6):
        run.write(step, {"a": step, "b": step}, wall_time=0.0)
    run.close()
    assert [step for step, _ in read_events(tmp_path)["a"]] == [1, 2, 3, 4, 5]


def test_who_has_nothing_to_write_makes_no_file(tmp_path):
    writer = create_writer(str(tmp_path), rank=0)
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())


def test_the_newest_evaluation_is_found_among_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert json_lines.newest_step(path, "eval/top1") == -1
    path.write_text(
        '{"step": 9, "train/top1": 1}\n{"step": 5, "eval/top1": 1}\n{"step": 8, "eval/top1": 0.'
    )
    assert json_lines.newest_step(path, "eval/top1") == 5


def test_events_come_after_those_of_a_clock_that_was_fast(tmp_path):
    later = time.time() + 1000
    (tmp_path / f"events.out.tfevents.{later:017.6f}.host.1").touch()
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    writer.close()
    first, second = sorted(path.name for path in tmp_path.glob("events.*"))
    assert first.endswith(".host.1")
    assert second.endswith(f".{os.getpid()}")


def test_flush_brings_everything_to_disk(tmp_path):
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    writer.flush()
    assert read_events(tmp_path) == {"a": [(1, 1.0)]}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    writer.close()


def test_other_ranks_write_nothing(tmp_path):
    writer = create_writer(str(tmp_path), rank=1)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_json_has_no_nan(tmp_path):
    writer = json_lines.JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.0}, wall_time=0.0)
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "wall_time": 0.0, "a": None, "b": None, "c": 1.0}


class FullDisk(protocol.NullWriter):
    """Has no space at first."""

    def __init__(self):
        self.tries = 0
        self.written = []

    def write(self, step, scalars, *, wall_time):
        self.tries += 1
        if self.tries <= 3:
            raise OSError(28, "No space left on device")
        self.written.append(step)


def test_a_full_disk_is_told_once_for_all_files_and_tried_again(capsys):
    full = FullDisk()
    writer = background.BackgroundWriter([full, FullDisk()])
    for step in range(1, 6):
        writer.write(step, {}, wall_time=0.0)
    writer.close()
    assert full.written == [4, 5]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "slim-horovod: the logs cannot be written ([Errno 28] No space left on device); training "
        "goes on, and it is tried again"
    ]


def test_what_was_written_gets_to_the_disk_without_a_flush(tmp_path):
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    deadline = time.monotonic() + 30
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    writer.close()


class ThreeWorkers(Group):
    """A group whose other workers say what the test wants."""

    def __init__(self, *others):
        super().__init__()
        self.others = others

    def gather(self, value):
        return [value, *self.others]


def step(number, *, duration_sec=0.5, own_sec=0.4):
    metrics = dict.fromkeys(StepMetrics._fields, 0.5) | {"data_wait_sec": 0.1}
    return Step(
        number=number,
        duration_sec=duration_sec,
        own_sec=own_sec,
        learning_rate=0.05,
        metrics=StepMetrics(**metrics),
    )


class Recorder(protocol.NullWriter):
    def __init__(self):
        self.steps = {}

    def write(self, step, scalars, *, wall_time):
        self.steps[step] = scalars


def create_log(group, recorder, *, images_per_step):
    return step_log.StepLog(
        group,
        recorder,
        console.NullConsole(),
        images_per_step=images_per_step,
        count_bad_examples=lambda: 1,
        memory_use=MemoryUse(local_rank=0),
        watch=slow_worker.SlowWorkerWatch(["a", "b", "c"][: len(group.gather(None))]),
    )


def test_a_steps_time_is_told_apart():
    recorder = Recorder()
    group = ThreeWorkers(
        ([0.45, 0.2], [0.0, 0.0], 2, 9e9, 8e9), ([0.3, 0.1], [0.0, 0.0], 0, 1.0, None)
    )
    log = create_log(group, recorder, images_per_step=96)
    log.add(step(1))
    log.add(step(2, own_sec=0.15))
    log.flush()
    first, second = recorder.steps[1], recorder.steps[2]
    assert first["perf/step_time_ms"] == 500
    assert first["perf/images_per_sec"] == 192
    assert first["perf/slowest_worker_step_ms"] == 450
    assert first["perf/fastest_worker_step_ms"] == 300
    assert first["perf/data_wait_ms"] == 100
    assert first["perf/compute_ms"] == pytest.approx(300)
    assert first["perf/wait_for_slowest_ms"] == pytest.approx(50)
    assert first["perf/allreduce_and_update_ms"] == pytest.approx(50)
    assert first["data/bad_examples"] == 3
    assert second["perf/slowest_worker_step_ms"] == 200
    assert second["perf/fastest_worker_step_ms"] == 100
    assert first["perf/slowest_worker"] == 1
    assert "perf/peak_resident_mib" not in first
    assert (second["perf/peak_resident_mib"], second["perf/peak_device_mib"]) == (9e9, 8e9)


def test_each_tag_has_one_row():
    names = [row.name for row in (*tags.EVERY_STEP, *tags.OCCASIONAL)]
    assert len(names) == len(set(names))


def test_a_scalar_is_logged_and_charted_by_its_row_alone(monkeypatch):
    row = tags.StepTag(
        "perf/longest_data_wait_ms",
        "longest wait for input of any worker",
        lambda run: 1000 * max(run.data_wait_sec),
        (tags.Chart.DATA_WAIT,),
    )
    monkeypatch.setattr(tags, "EVERY_STEP", (*tags.EVERY_STEP, row))
    recorder = Recorder()
    log = create_log(ThreeWorkers(([0.3], [0.25], 0, 1.0, None)), recorder, images_per_step=1)
    log.add(step(1))
    log.flush()
    assert recorder.steps[1]["perf/longest_data_wait_ms"] == 250
    assert read_layout()["waiting for data, ms"] == [
        "^perf/data_wait_ms$",
        "^perf/longest_data_wait_ms$",
    ]


def read_layout():
    """The tags of each chart of the Custom Scalars page, by the chart's title."""
    (value,) = custom_scalars.build_layout().value
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    (category,) = layout.category
    return {chart.title: list(chart.multiline.tag) for chart in category.chart}


def test_a_chart_has_tags_of_steps_before_occasional_ones():
    layout = read_layout()
    assert layout["loss"] == ["^train/loss$", "^train/cross_entropy$", "^eval/loss$"]
    assert list(layout)[:2] == [
        "images per second, over all workers",
        "time of a step, and each worker's own part of it, ms",
    ]
    assert all(layout.values())


def test_a_flush_writes_only_what_is_new():
    recorder = Recorder()
    log = create_log(Group(), recorder, images_per_step=1)
    log.add(step(1))
    log.flush()
    recorder.steps.clear()
    log.flush()
    assert recorder.steps == {}


def test_the_console_outlives_a_full_disk_and_a_reader_that_is_gone(tmp_path):
    plan = create_plan(
        RunConfig(steps=5), global_batch_size=1, train_examples=1, validation_examples=0
    )
    read, write = os.pipe()
    os.close(read)
    for stream in (os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), os.fdopen(write, "w")):
        with stream:
            talk = console.TextConsole(plan, first_step=1, stream=stream)
            talk.say("a line")
            talk.report_step(5, 0.1, loss=2.5, top1=0.5)
            talk.close()


def test_the_console_tells_the_mean_rate_since_its_last_line():
    plan = create_plan(
        RunConfig(steps=5, log_every=2),
        global_batch_size=32,
        train_examples=64,
        validation_examples=0,
    )
    stream = io.StringIO()
    talk = console.TextConsole(plan, first_step=1, stream=stream)
    for number, duration_sec in enumerate((0.1, 0.3, 1.0, 1.0, 4.0), start=1):
        talk.report_step(number, duration_sec, loss=2.5, top1=0.5)
    talk.close()
    # 64 images in 0.4 s: 160 images/s, and 3 steps of 0.2 s are left: 1 s.
    assert stream.getvalue().splitlines() == [
        "step 2/5  epoch 1.00  loss 2.5000  top-1 0.500  160.0 images/s  200.0 ms/step  "
        "ETA 0:00:01",
        "step 4/5  epoch 2.00  loss 2.5000  top-1 0.500  32.0 images/s  1000.0 ms/step  "
        "ETA 0:00:01",
        "step 5/5  epoch 2.50  loss 2.5000  top-1 0.500  8.0 images/s  4000.0 ms/step  ETA 0:00:00",
    ]
