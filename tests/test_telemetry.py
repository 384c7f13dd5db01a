"""The scalars of each step, the page that shows them, and the console."""

import io

import pytest
from tensorboard.plugins.custom_scalar import layout_pb2

from trainer.config import RunConfig
from trainer.distributed import Group
from trainer.graph.train_step import StepMetrics
from trainer.plan import create_plan
from trainer.telemetry import console, slow_worker, step_log, tags
from trainer.telemetry.memory_use import MemoryUse
from trainer.telemetry.pages import custom_scalars
from trainer.telemetry.step import Step
from trainer.telemetry.writers import protocol


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
