"""scripts/report.py: a page of plots out of metrics.jsonl."""

import json
import re

import numpy as np
import pytest
import report
from PIL import Image

from trainer.errors import UserError

TAGS = (
    "train/loss",
    "train/cross_entropy",
    "train/top1",
    "train/learning_rate",
    "perf/images_per_sec",
)


@pytest.fixture
def runs(tmp_path):
    """Two runs of 1,000 steps; each step of the second takes twice as long."""
    folders = [tmp_path / "quick", tmp_path / "slow <run>"]
    for factor, folder in enumerate(folders, start=1):
        folder.mkdir()
        lines = []
        for step in range(1, 1001):
            values = dict.fromkeys(TAGS, 1 / step)
            times = {"perf/step_time_ms": factor * (step % 100 + 1), "perf/data_wait_ms": 0.5}
            lines.append(json.dumps({"step": step, "wall_time": 0.0, **values, **times}))
        lines.append(json.dumps({"step": 1000, "eval/top1": factor / 4, "eval/loss": None}))
        lines.append('{"step": 1001, "train/')
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folders


def test_curves_are_what_the_lines_say(runs):
    curves = report.read_curves(runs[0])
    np.testing.assert_array_equal(curves["train/loss"].steps, np.arange(1, 1001))
    np.testing.assert_allclose(curves["train/loss"].values, 1 / np.arange(1, 1001))
    assert "eval/loss" not in curves  # Not finite.


def test_a_run_that_diverged_at_once_has_no_last_loss(tmp_path):
    values = {"perf/step_time_ms": 2.0, "perf/images_per_sec": 4.0, "train/loss": None}
    line = json.dumps({"step": 1, "wall_time": 0.0, **values}).encode()
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n\xff\xfe\n")
    figures = report.summarize(report.read_curves(tmp_path))
    assert figures["steps"] == "1"
    assert "training loss (last)" not in figures
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "perf/step_time_ms": 1.0}\n')
    assert report.summarize(report.read_curves(tmp_path))["steps"] == "1"


def test_percentiles_are_of_windows_of_steps(runs):
    curve = report.read_curves(runs[0])["perf/step_time_ms"]
    thinned = report.thin(curve, 90)
    assert len(thinned.steps) == 200
    np.testing.assert_array_equal(thinned.steps, np.arange(5, 1001, 5))
    first = np.percentile(curve.values[:5], 90)
    assert thinned.values[0] == first
    assert len(report.thin(curve, 90, least_steps=100).steps) == 10
    assert len(report.thin(curve, 90, least_steps=3000).steps) == 1


@pytest.mark.slow
def test_a_picture_of_several_runs(runs, tmp_path):
    out = tmp_path / "folder" / "report.png"
    report.main([*map(str, runs), f"--out={out}"])
    with Image.open(out) as picture:
        picture.load()
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=10**6)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # A colour for each run.


@pytest.mark.slow
def test_a_page_without_other_files(runs, tmp_path):
    out = tmp_path / "report.html"
    report.main([*map(str, runs), f"--out={out}"])
    page = out.read_text()
    assert page.count("<svg") == 1
    assert "slow &lt;run&gt;" in page
    timed = [step % 100 + 1 for step in range(11, 1001)]
    shares = " / ".join(f"{np.percentile(timed, share):.1f}" for share in (50, 90, 99))
    assert f"<td>{shares}</td>" in page
    assert not re.search(r'(src|href)="(?!#)', page)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out=report.pdf"], "--out: must end with .png or .html"),
        (["/nowhere"], "/nowhere/metrics.jsonl cannot be read"),
    ],
)
def test_mistakes_are_a_line(runs, arguments, line):
    with pytest.raises(UserError, match=line):
        report.main([str(runs[0]), *arguments])
