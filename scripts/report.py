#!/usr/bin/env python3
"""Draws one page of plots of one run or several: a picture to send.

  scripts/report.py runs/one --out report.png
  scripts/report.py runs/one runs/two --out report.html

It reads the metrics.jsonl of each folder. It needs matplotlib, which training does not: it comes
with the `report` extra of setup.py, and with scripts/setup.sh.
"""

import argparse
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shared import program

import numpy as np
import numpy.typing as npt

from trainer.errors import UserError
from trainer.process import texts
from trainer.telemetry.writers import metrics_lines

if TYPE_CHECKING:  # At run time it is imported where it is needed, and may be missing.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of a curve, at most: each is the median, or another percentile, of its steps; of a time, of ten
# steps at least, or its percentiles would be one.
_POINTS = 200
_LARGEST = 1e300
_LEAST_STEPS = 10
_FORMATS = (".png", ".html")


class Curve(NamedTuple):
    """The values of a tag over a run.

    Attributes:
      steps: numbers of the steps, int64 [n].
      values: finite, float64 [n].
    """

    steps: npt.NDArray[Any]
    values: npt.NDArray[Any]


class Panel(NamedTuple):
    """One plot.

    Attributes:
      title: heading, with the unit.
      lines: tag, percentile, label and style of each line.
      is_log: whether the axis is logarithmic.
    """

    title: str
    lines: tuple[tuple[str, float, str, str], ...]
    is_log: bool = False


PANELS = (
    Panel(
        "cross-entropy",
        (("train/cross_entropy", 50, "train", "-"), ("eval/loss", 50, "evaluation", "o--")),
    ),
    Panel(
        "accuracy, top-1",
        (("train/top1", 50, "train", "-"), ("eval/top1", 50, "evaluation", "o--")),
    ),
    Panel("images per second, all workers", (("perf/images_per_sec", 50, "median", "-"),)),
    Panel(
        "time of a step, ms",
        tuple(
            ("perf/step_time_ms", share, f"p{share}", style)
            for share, style in ((50, "-"), (90, "--"), (99, ":"))
        ),
        is_log=True,
    ),
    Panel("waiting for data, ms", (("perf/data_wait_ms", 50, "median", "-"),)),
    Panel("learning rate", (("train/learning_rate", 50, "", "-"),)),
)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Reads the curves of a run, by tag.

    Raises:
      UserError: the folder has no metrics.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        text = (folder / metrics_lines.NAME).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{folder}/metrics.jsonl cannot be read ({error.strerror}): give the --logdir of a run"
        ) from error
    for line in text.splitlines():
        values = metrics_lines.parse_line(line)
        for tag, value in values.items():
            if tag != "step" and isinstance(value, int | float) and abs(value) < _LARGEST:
                points.setdefault(tag, []).append((values["step"], float(value)))
    if "perf/step_time_ms" not in points:
        raise UserError(f"{folder}/metrics.jsonl has no training steps")
    return {
        tag: Curve(*(np.array(part) for part in zip(*pairs, strict=True)))
        for tag, pairs in points.items()
    }


def thin(curve: Curve, percentile: float, *, least_steps: int = 1) -> Curve:
    """Reduces a curve to `_POINTS` points: each the percentile of some steps, at the last of them.

    Args:
      curve: values of all steps.
      percentile: percentile that a point has of its steps, in [0, 100].
      least_steps: least number of steps per point, where the curve has as many.
    """
    windows = max(1, min(len(curve.steps) // least_steps, _POINTS))
    steps = [part[-1] for part in np.array_split(curve.steps, windows)]
    values = [np.percentile(part, percentile) for part in np.array_split(curve.values, windows)]
    return Curve(np.array(steps), np.array(values))


def summarize(curves: Mapping[str, Curve]) -> dict[str, str]:
    """The figures of a run that a person asks for first; times without 10 first steps."""
    durations_ms = curves["perf/step_time_ms"].values
    timed = durations_ms[min(10, len(durations_ms) // 2) :]
    figures = {"steps": f"{curves['perf/step_time_ms'].steps[-1]}"}
    if "perf/images_per_sec" in curves:
        rate = np.median(curves["perf/images_per_sec"].values)
        figures["images/s (median)"] = f"{rate:.1f}"
    figures["ms per step, p50 / p90 / p99"] = " / ".join(
        f"{np.percentile(timed, share):.1f}" for share in (50, 90, 99)
    )
    if "train/loss" in curves:  # Which it is not where none was finite.
        figures["training loss (last)"] = f"{curves['train/loss'].values[-1]:.4f}"
    for name in ("top1", "top5"):
        if f"eval/{name}" in curves:
            figures[f"{name} (last)"] = f"{curves[f'eval/{name}'].values[-1]:.4f}"
    return figures


def draw(runs: Mapping[str, Mapping[str, Curve]]) -> "Figure":
    """Draws all panels into a figure; `runs`: curves by tag by run.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(f"{error}. Install it: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for axes, panel in zip(places.flat, PANELS, strict=True):
        draw_panel(axes, panel, runs)
    figure.suptitle(", ".join(runs), fontsize=11)
    return figure


def draw_panel(axes: "Axes", panel: Panel, runs: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draws one plot; each run has a colour, each line of a run a style."""
    for number, (name, curves) in enumerate(runs.items()):
        for tag, percentile, label, style in panel.lines:
            if tag not in curves:
                continue
            least_steps = _LEAST_STEPS if tag.startswith("perf/") else 1
            curve = thin(curves[tag], percentile, least_steps=least_steps)
            parts = [name] if len(runs) > 1 else []
            parts += [label] if label and len(panel.lines) > 1 else []
            axes.plot(
                curve.steps,
                curve.values,
                style,
                color=f"C{number}",
                label=" ".join(parts) or None,
                linewidth=1.2,
                markersize=4,
            )
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.is_log:
        axes.set_yscale("log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def render_page(figure: "Figure", runs: Mapping[str, Mapping[str, Curve]]) -> str:
    """Renders one page of HTML, complete in itself: the figures of each run, the plots as SVG."""
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    summaries = {name: summarize(curves) for name, curves in runs.items()}
    titles = list(dict.fromkeys(title for figures in summaries.values() for title in figures))
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ["run", *titles])
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in [name, *(figures.get(title, "") for title in titles)]
        )
        + "</tr>"
        for name, figures in summaries.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>slim-horovod</title>'
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:left}"
        "svg{max-width:100%;height:auto}</style>"
        f"<table><tr>{head}</tr>{rows}</table>{svg[svg.index('<svg') :]}</html>\n"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("logdirs", nargs="+", type=program.path, metavar="LOGDIR", help="of a run")
    parser.add_argument(
        "--out", type=program.path, default=Path("report.png"), help=".png or .html"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, draws, and writes the page."""
    options = parse_arguments(argv)
    if options.out.suffix not in _FORMATS:
        raise UserError(f"--out: must end with .png or .html, got {options.out}")
    runs = {texts.printable(str(path)): read_curves(path) for path in options.logdirs}
    figure = draw(runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == ".png":
        figure.savefig(options.out, dpi=110)
    else:
        options.out.write_text(render_page(figure, runs), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    program.run(main)
