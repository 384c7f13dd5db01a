"""scripts/scaling.py: what it plans, reads and reports; runs are made up, with known answers."""

import json

from shared import scaling_runs
from shared.scaling_runs import Run

import numpy as np
import pytest
import scaling
from matplotlib import image

from trainer.errors import UserError


def write_run(folder, *, workers, batch_size, step_ms, steps=12):
    """A run whose steps take half of the time to compute, and a tenth to wait for data."""
    folder.mkdir(parents=True)
    rate = 1000 * workers * batch_size / step_ms
    lines = []
    for step in range(1, steps + 1):
        took = 9e6 if step == 1 else step_ms  # The first warms up.
        lines.append(
            {
                "step": step,
                "perf/step_time_ms": took,
                "perf/images_per_sec": rate * step_ms / took,
                "perf/images_per_sec_per_worker": rate * step_ms / took / workers,
                "perf/data_wait_ms": 0.1 * took,
                "perf/compute_ms": 0.5 * took,
                "perf/fastest_worker_step_ms": 0.4 * took,
                "perf/median_worker_step_ms": 0.6 * took,
                "perf/slowest_worker_step_ms": 0.8 * took,
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_result(path, *, logdir=None, **result):
    content = {"mode": "train", "config": {"run": {"logdir": logdir}}, "result": result}
    path.write_text(json.dumps(content))
    return path


def test_a_run_is_read_from_its_folder(tmp_path):
    run = scaling_runs.read_run(write_run(tmp_path / "a", workers=4, batch_size=8, step_ms=200))
    assert (run.workers, run.global_batch_size) == (4, 32)
    assert run.images_per_sec == pytest.approx(160)
    parts = run.parts
    shares = (parts.data, parts.compute, parts.communication)
    assert shares == pytest.approx((0.1, 0.5, 0.4))
    assert (parts.fastest_ms, parts.middle_ms, parts.slowest_ms) == pytest.approx((80, 120, 160))
    alone = write_run(tmp_path / "b", workers=1, batch_size=8, step_ms=200)
    metrics = alone / "metrics.jsonl"  # As runs of one worker write it.
    metrics.write_text(metrics.read_text().replace("median_worker", "other"))
    parts = scaling_runs.read_run(alone).parts
    assert parts.middle_ms == parts.fastest_ms == pytest.approx(80)


def test_a_run_of_a_version_that_wrote_less_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "perf/step_time_ms": 5.0}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl has no perf/images_per_sec: another"):
        scaling_runs.read_run(tmp_path)


def test_a_run_is_read_from_its_result(tmp_path):
    folder = write_run(tmp_path / "a", workers=4, batch_size=8, step_ms=200)
    figures = {"workers": 4, "global_batch_size": 32, "images_per_sec": 150.5}
    run = scaling_runs.read_run(write_result(tmp_path / "r.json", logdir=str(folder), **figures))
    assert run.images_per_sec == 150.5
    assert run.parts.compute == pytest.approx(0.5)
    alone = scaling_runs.read_run(write_result(tmp_path / "s.json", **figures))
    assert alone == Run(4, 32, 150.5)
    metrics = folder / "metrics.jsonl"  # As of a version that logged other parts.
    metrics.write_text(metrics.read_text().replace("compute_ms", "other_ms"))
    assert scaling_runs.read_run(tmp_path / "r.json") == Run(4, 32, 150.5)


@pytest.mark.parametrize("text", ["{", "[]", '{"result": {"workers": 2}}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.json: must be the --result_json of training"):
        scaling_runs.read_run(path)


def test_speed_up_and_efficiency_are_those_of_both_kinds_of_scaling():
    runs = [
        Run(1, 16, 10.0),
        Run(2, 32, 18.0),  # Weak.
        Run(2, 32, 19.0),
        Run(2, 32, 30.0),
        Run(1, 32, 12.0),  # Strong, with those of 2 x 16.
    ]
    series = scaling_runs.list_series(runs)
    assert list(series) == [
        "weak scaling, 16 images per worker",
        "strong scaling, 32 images over all workers",
    ]
    one, two = series["weak scaling, 16 images per worker"]
    assert (one.speed_up, one.efficiency) == (1, 1)
    assert (two.runs, two.images_per_sec, two.speed_up) == (3, 19, 1.9)
    assert two.efficiency == pytest.approx(0.95)
    strong = series["strong scaling, 32 images over all workers"]
    assert strong[1].speed_up == pytest.approx(19 / 12)


def test_a_series_without_one_worker_is_compared_with_its_fewest():
    (rows,) = scaling_runs.list_series([Run(8, 80, 80.0), Run(16, 160, 152.0)]).values()
    assert [row.efficiency for row in rows] == pytest.approx([1, 0.95])


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"runs: must have one batch size.* got 1 x 16, 2 x 20"):
        scaling_runs.list_series([Run(1, 16, 10.0), Run(2, 40, 18.0)])


@pytest.mark.slow
def test_the_report_has_a_table_and_a_picture(tmp_path, capsys):
    write_run(tmp_path / "one", workers=1, batch_size=16, step_ms=100)
    write_run(tmp_path / "two", workers=2, batch_size=16, step_ms=125)
    write_run(tmp_path / "half", workers=2, batch_size=8, step_ms=80)
    places = [str(tmp_path / name) for name in ("one", "two", "half")]
    picture = tmp_path / "made" / "scaling.png"
    scaling.main(["report", *places, "--out", str(picture)])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "scaling, " in line] == [
        "weak scaling, 16 images per worker",
        "strong scaling, 16 images over all workers",
    ]
    two = "2 1 256.00 1.60 80.0% 10.0% 50.0% 40.0% 50.0 75.0 100.0"
    assert said[3].split() == two.split()
    pixels = image.imread(picture)
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 5


def test_runs_are_planned_for_both_kinds_of_scaling():
    assert scaling.plan_runs((1, 2, 4), 8) == [(1, 8), (2, 8), (4, 8), (1, 32), (2, 16)]
    with pytest.raises(UserError, match="--batch_size: 4 times it must be a multiple"):
        scaling.plan_runs((3, 4), 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--workers=2,0", "--out=x"], "whole numbers from 1"),
        (["run", "--workers=2", "--out=x"], "--workers: must be several numbers"),
        (["report", "a", "--out=scaling"], "--out: must end with .png, got scaling"),
        (["predict", "--alone=x", "--batch_size=8"], "--batch_size: must be given with --images_"),
        (["predict"], "--images_per_sec, --alone: one of them must be given"),
        (["predict", "--images_per_sec=9", "--gpus_per_host=3"], "--gpus_per_host: must divide"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit):
        scaling.parse_arguments(arguments)
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("workers", "asked", "said"),
    [
        (2, {}, "--alone: must be a run of one worker; .* had 2"),
        (
            1,
            {"model": "resnet_v2_50"},
            "--model: must be resnet_v2_101, as in .*, got resnet_v2_",
        ),
    ],
)
def test_the_model_takes_what_one_worker_has_trained(tmp_path, workers, asked, said):
    folder = write_run(tmp_path / "run", workers=workers, batch_size=8, step_ms=100)
    (folder / "model.json").write_text('{"model": "resnet_v2_101", "image_size": 64}')
    with pytest.raises(UserError, match=said):
        scaling._read_alone(folder, {"model": None, "image_size": None, **asked})
    if workers == 1:
        found = {"model": None, "image_size": None}
        scaling._read_alone(folder, found)
        assert found == {"model": "resnet_v2_101", "image_size": "64"}


def test_a_run_of_one_worker_that_wrote_less_is_refused(tmp_path):
    metrics = write_run(tmp_path / "run", workers=1, batch_size=8, step_ms=100) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("compute_ms", "other_ms"))
    with pytest.raises(UserError, match="has no perf/compute_ms: another"):
        scaling._read_alone(tmp_path / "run", {})
