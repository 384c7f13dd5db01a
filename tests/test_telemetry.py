"""The scalars of each step, the page that shows them, and the console."""

import io
import math
import re

import fixed_tags
import pytest
from tensorboard.plugins.custom_scalar import layout_pb2

from trainer.config import RunConfig
from trainer.distributed import Group
from trainer.graph.train_step import StepMetrics
from trainer.plan import create_plan
from trainer.run.evaluation import Evaluation, write_scalars
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


def step(number, *, duration_sec=0.5, own_sec=0.4, rate=0.05, **metrics):
    values = dict.fromkeys(StepMetrics._fields, 0.5) | {"data_wait_sec": 0.1}
    return Step(
        number=number,
        duration_sec=duration_sec,
        own_sec=own_sec,
        learning_rate=rate,
        metrics=StepMetrics(**values | metrics),
    )


class Recorder(protocol.NullWriter):
    def __init__(self):
        self.steps = {}

    def write(self, step, scalars, *, wall_time):
        self.steps[step] = scalars


def create_log(group, recorder, *, images_per_step, bad_examples=1):
    return step_log.StepLog(
        group,
        recorder,
        console.NullConsole(),
        images_per_step=images_per_step,
        count_bad_examples=lambda: bad_examples,
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
    assert first["perf/median_worker_step_ms"] == 400
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
        (tags.Chart.PARTS_OF_STEP_TIME,),
    )
    monkeypatch.setattr(tags, "EVERY_STEP", (*tags.EVERY_STEP, row))
    recorder = Recorder()
    log = create_log(ThreeWorkers(([0.3], [0.25], 0, 1.0, None)), recorder, images_per_step=1)
    log.add(step(1))
    log.flush()
    assert recorder.steps[1]["perf/longest_data_wait_ms"] == 250
    names = read_layout()["where the time goes, ms"]
    assert names[0] == "^perf/data_wait_ms$"
    assert names[-1] == "^perf/longest_data_wait_ms$"


def read_pages(kernels=()):
    """The Custom Scalars page: per part, the tags of each chart by the chart's title."""
    (value,) = custom_scalars.build_layout(kernels).value
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    return [
        {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    ]


def read_layout():
    """The tags of each chart by the chart's title."""
    return {title: names for page in read_pages() for title, names in page.items()}


def test_the_first_part_of_the_page_has_one_line_per_run_in_each_chart():
    runs, details = read_pages()
    assert {len(names) for names in runs.values()} == {1}
    assert all(len(names) > 1 for names in details.values())
    assert ["^eval/top1$"] in runs.values()


def test_norms_of_kernels_have_a_chart_per_part_of_the_network():
    kernels = ["net/conv1/weights", "net/block1/unit_1/conv1/weights", "net/block1/unit_2/weights"]
    *_, norms = read_pages(kernels)
    assert list(norms) == [
        *("gradient_norm, net/conv1", "gradient_norm, net/block1"),
        *("weight_norm, net/conv1", "weight_norm, net/block1"),
    ]
    assert norms["weight_norm, net/block1"] == [
        "^weight_norm/net/block1/unit_1/conv1/weights$",
        "^weight_norm/net/block1/unit_2/weights$",
    ]


def test_a_chart_has_tags_of_steps_before_occasional_ones():
    layout = read_layout()
    of_evaluations = ["^eval/loss$", "^eval/ema_loss$"]
    assert layout["loss"] == ["^train/loss$", "^train/cross_entropy$", *of_evaluations]
    assert list(layout)[:2] == [
        "images per second, over all workers",
        "time of a step, ms",
    ]
    assert all(layout.values())


def test_what_says_nothing_is_not_written():
    recorder = Recorder()
    log = create_log(Group(), recorder, images_per_step=1, bad_examples=0)
    log.add(step(1, loss_scale=1.0))
    log.add(step(2, loss_scale=2.0**15))
    log.flush()
    first, second = (set(recorder.steps[number]) for number in (1, 2))
    assert second - first >= {"train/loss_scale"}
    of_several = {"wait_for_slowest_ms", "median_worker_step_ms", "slowest_worker"}
    assert not second & {"data/bad_examples", *(f"perf/{name}" for name in of_several)}
    assert second >= fixed_tags.EVERY_STEP
    for num_classes, tags_of_evaluation in (
        (5, {"eval/top1", "eval/loss"}),
        (6, {"eval/top1", "eval/loss", "eval/top5"}),
    ):
        found = Evaluation(count=8, top1=0.5, top5=1.0, loss=0.7)
        write_scalars(recorder, 3, found, num_classes=num_classes)
        assert set(recorder.steps[3]) == tags_of_evaluation
        assert ("top-5" in found.describe(num_classes)) == (num_classes == 6)


def test_a_flush_writes_only_what_is_new():
    recorder = Recorder()
    log = create_log(Group(), recorder, images_per_step=1)
    log.add(step(1))
    log.flush()
    recorder.steps.clear()
    log.flush()
    assert recorder.steps == {}


def open_console(config, **sizes):
    """A plan, its console, and the file that the console prints to."""
    plan = create_plan(config, validation_examples=0, **sizes)
    stream = io.StringIO()
    return plan, console.TextConsole(plan, first_step=1, stream=stream), stream


def test_the_console_tells_the_mean_rate_since_its_last_line():
    _, talk, stream = open_console(
        RunConfig(steps=5, log_every=2), global_batch_size=32, train_examples=64
    )
    for number, duration_sec in enumerate((0.1, 0.3, 1.0, 1.0, 4.0), start=1):
        talk.report_step(
            step(number, duration_sec=duration_sec, cross_entropy=2.5, top1=number / 8)
        )
    talk.close()
    # 64 images in 0.4 s: 160 images/s, and 3 steps of 0.2 s are left: 1 s.
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["epoch", "loss", "top-1", "running", "rate", "images/s", "ETA"],
        ["step", "2/5", "1.00", "2.5000", "0.250", "0.188", "0.05", "160.0", "0:00:01"],
        ["step", "4/5", "2.00", "2.5000", "0.500", "0.312", "0.05", "32.0", "0:00:01"],
        ["step", "5/5", "2.50", "2.5000", "0.625", "0.375", "0.05", "8.0", "0:00:00"],
    ]


def test_a_line_of_the_console_fits_into_80_columns_below_its_heading():
    plan, talk, stream = open_console(
        RunConfig(epochs=90, log_every=100), global_batch_size=256, train_examples=1_281_167
    )
    for number in range(448_801, plan.total_steps + 1):
        talk.report_step(step(number, duration_sec=12.5, cross_entropy=math.nan, rate=3.125e-5))
    talk.report_step(step(100, duration_sec=0.01, cross_entropy=12345.678, rate=1.6))
    talk.close()
    heading, *lines = stream.getvalue().splitlines()
    assert plan.total_steps == 450_411
    assert {len(line) for line in (heading, *lines)} == {78}
    # 16 each hundredth, one at the end, one more.
    assert len(lines) == 18
    assert lines[0].split()[2:] == ["89.70", "nan", "0.500", "0.500", "3.13e-05", "20.5", "5:14:48"]
    assert lines[-1].split()[3:] == ["12345.7", "0.500", "0.500", "1.6", "25600.0", "1:15:03"]
    assert [column.start() for column in re.finditer(r"\S(?= |$)", lines[0])][2:] == [
        column.start() for column in re.finditer(r"\S(?= |$)", heading)
    ]


@pytest.mark.parametrize(
    ("steps", "examples", "done", "duration_sec", "told"),
    [
        (450_000, 25_600, 99_999, 1.0, ["step", "99999/450000", "999.99"]),
        (450_000, 25_600, 450_000, 1.0, ["step", "450000/450000", "4500.0"]),
        (9_999_999, 25_600, 1_234_567, 1.0, ["step", "1234567/9999999", "12346"]),
        (9_999_999, 256, 9_999_999, 1e-6, ["step", "9999999/9999999", "1e+07"]),
        (10_000_000, 25_600, 1_000_000, 300.0, ["step", "1000000", "10000"]),
        (10**12, 256_000_000, 10**12, 1e-9, ["step", "1000000000000", "1e+06"]),
        (10**9, 25_600, 1, 1.0, ["step", "1", "0.01"]),
    ],
)
def test_columns_of_a_long_run_stay_apart(steps, examples, done, duration_sec, told):
    _, talk, stream = open_console(
        RunConfig(steps=steps, log_every=1), global_batch_size=256, train_examples=examples
    )
    talk.report_step(
        step(done, duration_sec=duration_sec, cross_entropy=3e38, rate=1.23e-38, top1=1.0)
    )
    talk.close()
    heading, line = stream.getvalue().splitlines()
    assert len(line) == len(heading) <= 80
    values = line.replace("d ", "d").split()
    assert values[:3] == told
    assert values[3:7] == ["3.0e+38", "1.000", "1.000", "1.23e-38"]
    rate = 256 / duration_sec
    assert float(values[7]) == pytest.approx(rate, rel=0.2)
    assert len(values) == 9
