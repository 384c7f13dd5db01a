"""scripts/report.py: a page of plots and a table out of metrics.jsonl and the flags of runs."""

import html.parser
import json
import re
from pathlib import Path

from shared import run_logs, run_table

import matplotlib
import numpy as np
import pytest
import report
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from trainer.checkpoints import model_file
from trainer.config import Config, DataConfig, OptimizerConfig, flag_file
from trainer.errors import UserError
from trainer.telemetry.pages import fonts

TAGS = (
    "train/loss",
    "train/cross_entropy",
    "train/top1",
    "train/learning_rate",
    "perf/images_per_sec",
)


def write_run(folder, steps, *, factor=1, evaluations=(), **more):
    """Writes a run whose steps take a time that grows by `factor`; `more` are other values."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in steps:
        values = dict.fromkeys(TAGS, 1 / step)
        times = {"perf/step_time_ms": factor * (step % 100 + 1), "perf/data_wait_ms": 0.5}
        lines.append({"step": step, "wall_time": 0.0, **values, **times, **more})
    lines += [{"step": step, "eval/top1": top1, "eval/loss": None} for step, top1 in evaluations]
    text = "\n".join([*map(json.dumps, lines), '{"step": 1001, "train/'])
    (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs of 1,000 steps; each step of the second takes twice as long."""
    return [
        write_run(tmp_path / name, range(1, 1001), factor=factor, evaluations=[(1000, factor / 4)])
        for factor, name in enumerate(["quick", "slow <run>"], start=1)
    ]


def read(*folders):
    said = []
    return run_logs.read_runs(folders, said.append), said


def test_curves_are_what_the_lines_say(runs):
    curves = run_logs.read_curves(runs[0])
    np.testing.assert_array_equal(curves["train/loss"].steps, np.arange(1, 1001))
    np.testing.assert_allclose(curves["train/loss"].values, 1 / np.arange(1, 1001))
    assert np.isnan(curves["eval/loss"].values).all()


def test_a_run_that_diverged_at_once_has_no_last_loss(tmp_path):
    values = {"perf/step_time_ms": 2.0, "perf/images_per_sec": 4.0, "train/cross_entropy": None}
    line = json.dumps({"step": 1, "wall_time": 0.0, **values}).encode()
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n\xff\xfe\n")
    (run,), _ = read(tmp_path)
    figures = run_table.summarize(run)
    assert figures["steps"] == "1"
    assert figures["cross-entropy, last"] == "not finite"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "perf/step_time_ms": 1.0}\n')
    (run,), _ = read(tmp_path)
    assert run_table.summarize(run)["steps"] == "1"


def test_percentiles_are_of_windows_of_steps(runs):
    curve = run_logs.read_curves(runs[0])["perf/step_time_ms"]
    thinned = report.thin(curve, 90)
    assert len(thinned.steps) == 200
    np.testing.assert_array_equal(thinned.steps, np.arange(5, 1001, 5))
    first = np.percentile(curve.values[:5], 90)
    assert thinned.values[0] == first
    assert len(report.thin(curve, 90, least_steps=100).steps) == 10
    assert len(report.thin(curve, 90, least_steps=3000).steps) == 1


def paint(figure):
    """The pixels of a figure: int64 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def ink(pixels, axes, first, last):
    """Counts the pixels of a plot that are coloured between two steps."""
    (left, _), (right, _) = axes.transData.transform([(first, 0), (last, 0)]).round().astype(int)
    bottom, top = axes.bbox.y0, axes.bbox.y1
    part = pixels[len(pixels) - int(top) : len(pixels) - int(bottom), left:right]
    return int((np.ptp(part, axis=2) > 50).sum())


@pytest.mark.slow
def test_no_line_is_drawn_where_there_are_no_values(tmp_path):
    """Between evaluations there is one; a value between gaps is a dot."""
    kept = [*range(1, 500), 700, *range(901, 1001)]
    write_run(tmp_path / "lost", kept, evaluations=[(100, 0.1), (1000, 0.2)])
    write_run(tmp_path / "null", [*range(1, 50), *range(90, 101)])
    with (tmp_path / "null" / "metrics.jsonl").open("a") as file:
        file.writelines(
            f'\n{{"step": {step}, "train/cross_entropy": null}}' for step in range(50, 90)
        )
    lost, null = (read(tmp_path / name)[0] for name in ("lost", "null"))
    figure = report.draw(lost)
    pixels = paint(figure)
    losses, accuracies, rates = figure.axes[:3]
    for axes in (losses, rates):
        assert ink(pixels, axes, 100, 490) > 100
        assert ink(pixels, axes, 910, 990) > 20
        assert ink(pixels, axes, 520, 680) == ink(pixels, axes, 720, 890) == 0
        assert 4 < ink(pixels, axes, 680, 720) < 60
    assert ink(pixels, accuracies, 520, 680) > 50
    figure = report.draw(null)
    pixels = paint(figure)
    assert ink(pixels, figure.axes[0], 52, 88) == 0
    assert ink(pixels, figure.axes[0], 10, 48) > 60


@pytest.mark.slow
def test_a_picture_of_several_runs(runs, tmp_path):
    out = tmp_path / "folder" / "report.png"
    report.main([*map(str, runs), f"--out={out}"])
    with Image.open(out) as picture:
        picture.load()
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=10**6)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # A colour for each run.


class Table(html.parser.HTMLParser):
    """The rows of the tables in a page."""

    def __init__(self, page):
        super().__init__()
        self.rows = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def columns(self):
        head, *rows = [row[1:] for row in self.rows]
        return {title: [row[number] for row in rows] for number, title in enumerate(head)}


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


def test_the_table_tells_figures_and_the_flags_that_differ(tmp_path):
    """As runs write them: `flags` has those of the command line, model.json the network's."""
    rates = {"one": 0.1, "two": 0.2, "old": None}
    for number, (name, rate) in enumerate(rates.items()):
        evaluations = [(10, 0.1), (20, 0.5 + number / 10), (30, 0.4)]
        write_run(tmp_path / name, range(1, 31), evaluations=evaluations)
        config = Config(
            given=("batch_size", "base_learning_rate", "image_size"),
            data=DataConfig(batch_size=64, image_size=32 + number),
            optimizer=OptimizerConfig(base_learning_rate=rate or 0.1),
        )
        model_file.write(tmp_path / name, config, None)
        if rate is not None:  # An earlier version's run has no flag file.
            (tmp_path / name / "flags").write_text(flag_file.write(config))
    with (tmp_path / "one" / "flags").open("a") as file:
        file.write("--histogram_every=5\n")
    found, said = read(tmp_path)
    columns = Table(run_table.render_html(found)).columns()
    assert said == []
    assert columns["run"] == ["old", "one", "two"]
    assert columns["steps"] == ["30"] * 3
    assert columns["best top-1"] == [f"{top1:.4f} after step 20" for top1 in (0.7, 0.5, 0.6)]
    assert columns["top-1, last"] == ["0.4000"] * 3
    assert columns["cross-entropy, last"] == [f"{1 / 30:.4f}"] * 3
    assert columns["images/s, median"] == [f"{np.median([1 / s for s in range(1, 31)]):.1f}"] * 3
    flags = {title: cells for title, cells in columns.items() if title.startswith("--")}
    assert flags == {
        "--image_size": ["34", "32", "33"],
        "--base_learning_rate": ["", "0.1", "0.2"],
        "--histogram_every": ["", "5", "0"],
    }


def test_files_that_are_damaged_are_named(tmp_path):
    folder = write_run(tmp_path / "run", [1])
    (folder / "flags").write_text("--no_such_flag=1\n")
    (folder / "model.json").write_text("{")
    (run,), said = read(folder)
    assert run.flags == {}
    assert [line.partition(": ")[0] for line in said] == [f"{folder}/flags", f"{folder}/model.json"]


@pytest.mark.slow
def test_the_table_is_below_the_plots_and_hides_nothing(tmp_path, monkeypatch):
    """With long names, with signs that mean something to matplotlib, and of other languages."""
    stix = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
    monkeypatch.setattr(fonts, "find_in_system", lambda _: fonts.FontFile(str(stix), 0))
    names = ["_hidden", "$x^$", "жук", "a" * 99, "\u1d81", "猫", *map(str, range(6))]
    for number, name in enumerate(names):
        folder = write_run(tmp_path / name, range(1, 50), evaluations=[(40, 0.5)])
        (folder / "flags").write_text(f"--data_dir=/{'long/' * 20}{number}\n--seed={number}")
    found, said = read(tmp_path)
    assert said == []
    figure = report.draw(found)
    run_table.draw_below(figure, found)
    paint(figure)
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert max(box.y1 for box in boxes) <= lowest
    assert min(box.y0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(axes.get_legend() is None for axes in figure.axes)
    shown = [text.get_text() for text in figure.texts]
    whole = {"_hidden", "$x^$", "жук", "\u1d81", r"\u732b", f"{'a' * 19}…{'a' * 20}"}
    assert whole <= set(shown)
    marks = [text.get_color() for text in figure.texts if text.get_text() == "■"]
    assert len(set(marks)) == len(names)
    assert len(set(run_table.colours_of(40))) == 40
    lines = [line.get_color() for line in figure.axes[2].get_lines()]
    assert marks[: len(names)] == lines


def test_a_folder_of_runs_stands_for_them_and_what_is_no_run_is_named(runs, tmp_path, capsys):
    write_run(tmp_path / "deep" / "er", [1])
    (tmp_path / "deep" / "again").symlink_to(tmp_path)
    for name in ("crashed/inner", "deep/too", "quick/best", ".hidden", "empty", "evaluated"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "evaluated" / "metrics.jsonl").write_text('{"step": 9, "eval/top1": 0.5}\n')
    found, said = read(runs[0], tmp_path, tmp_path / "empty", tmp_path / "nowhere")
    assert [run.name for run in found] == ["quick", "deep/er", "slow <run>"]
    assert said == [
        f"passed over: {tmp_path}/evaluated/metrics.jsonl has no training steps",
        f"passed over: {tmp_path}/empty has no metrics.jsonl",
        f"passed over: {tmp_path}/nowhere is no folder",
        f"passed over: {tmp_path}/crashed, {tmp_path}/deep/too have no metrics.jsonl",
    ]
    few = write_run(tmp_path / "few" / "run", [1]).parent
    (few / "broken").mkdir()
    assert read(few)[1] == [f"passed over: {few}/broken has no metrics.jsonl"]
    for number in range(9):
        (tmp_path / f"quick-{number}").mkdir()
    assert read(tmp_path)[1][-1].endswith("/quick-0 and 8 more folders have no metrics.jsonl")
    (alone,), _ = read(runs[0])
    assert alone.name == str(runs[0])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["quick", "--out=report.pdf"], "--out: must end with .png or .html"),
        (["quick", "--out=file/r.png"], "--out: must be writable, got file/r.png .File exists"),
        (["/nowhere"], "^/nowhere is no folder: give the --logdir of a run$"),
        (["empty", "/nowhere"], "^empty has no metrics.jsonl, and 1 more are no runs: give"),
    ],
)
def test_mistakes_are_a_line(runs, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=line):
        report.main(arguments)
