#!/usr/bin/env python3
"""Draws one page of plots of one run or several: a picture to send.

  scripts/report.py runs/one --out report.png
  scripts/report.py runs --out report.html

It reads the metrics.jsonl and the flags of each folder, and of those in it. It needs matplotlib,
which training does not: it comes with the `report` extra of setup.py, and with scripts/setup.sh.
"""

import argparse
import io
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared import program, run_logs, run_table
from shared.run_logs import Curve, Run

import numpy as np

from trainer.errors import UserError
from trainer.process import files

if TYPE_CHECKING:  # At run time it is imported where it is needed, and may be missing.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of a curve, at most: each is the median, or another percentile, of its steps; of a time, of ten
# steps at least, or its percentiles would be one.
_POINTS = 200
_LEAST_STEPS = 10
_FORMATS = (".png", ".html")


class Panel(NamedTuple):
    """One plot.

    Attributes:
      title: heading, with the unit and the meaning of each style of line.
      lines: tag, percentile and style of each line.
      is_log: whether the axis is logarithmic.
    """

    title: str
    lines: tuple[tuple[str, float, str], ...]
    is_log: bool = False


PANELS = (
    Panel(
        "cross-entropy (dots: of evaluations)",
        (("train/cross_entropy", 50, "-"), ("eval/loss", 50, "o--")),
    ),
    Panel(
        "accuracy, top-1 (dots: of evaluations)",
        (("train/top1", 50, "-"), ("eval/top1", 50, "o--")),
    ),
    Panel("images per second, all workers", (("perf/images_per_sec", 50, "-"),)),
    Panel(
        "time of a step, ms (median; dashed: p90; dotted: p99)",
        tuple(
            ("perf/step_time_ms", share, style)
            for share, style in ((50, "-"), (90, "--"), (99, ":"))
        ),
        is_log=True,
    ),
    Panel("waiting for data, ms", (("perf/data_wait_ms", 50, "-"),)),
    Panel("learning rate", (("train/learning_rate", 50, "-"),)),
)


def thin(curve: Curve, percentile: float, *, least_steps: int = 1) -> Curve:
    """Reduces a curve of all steps to at most `_POINTS` points, each of as many steps.

    Args:
      curve: values of the steps.
      percentile: percentile that a point has of its steps, in [0, 100].
      least_steps: least number of steps per point, where the curve has as many.

    Returns:
      A point is at the last of its steps; where none of them has a value, it is NaN.
    """
    first, count = curve.steps[0], curve.steps[-1] - curve.steps[0] + 1
    points = max(1, min(int(count // least_steps), _POINTS))
    bounds = np.searchsorted((curve.steps - first) * points // count, np.arange(points + 1))
    thinned = np.full((2, points), np.nan)
    for point, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = curve.values[start:end]
        part = part[np.isfinite(part)]
        if len(part):
            thinned[:, point] = curve.steps[end - 1], np.percentile(part, percentile)
    return Curve(*thinned)


def draw(runs: Sequence[Run]) -> "Figure":
    """Draws all plots into a figure.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{error}. Install it: pip install matplotlib") from error
    figure = Figure(figsize=(15, 8), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        draw_panel(axes, panel, runs)
    return figure


def draw_panel(axes: "Axes", panel: Panel, runs: Sequence[Run]) -> None:
    """Draws one plot; each run has a colour, each line of a run a style.

    Where there are no values, there is no line, but between evaluations there is.
    """
    for run, colour in zip(runs, run_table.colours_of(len(runs)), strict=True):
        for tag, percentile, style in panel.lines:
            if tag not in run.curves:
                continue
            curve = run.curves[tag]
            if not tag.startswith("eval/"):
                least_steps = _LEAST_STEPS if tag.startswith("perf/") else 1
                curve = thin(curve, percentile, least_steps=least_steps)
            line = axes.plot(*curve, style, color=colour, linewidth=1.2, markersize=4)[0]
            if not tag.startswith("eval/"):  # A dot only where there is nothing to join it to.
                ends = np.pad(np.isfinite(curve.values), 1)
                line.set_marker(".")
                alone = ends[1:-1] & ~ends[:-2] & ~ends[2:]
                line.set_markevery(np.flatnonzero(alone).tolist())
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.is_log:
        axes.set_yscale("log")


def render_page(figure: "Figure", runs: Sequence[Run]) -> str:
    """Renders one page of HTML, complete in itself: the table of the runs, the plots as SVG."""
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>slim-horovod</title>'
        "<style>body{font:14px sans-serif;margin:2em}div{overflow-x:auto}"
        "td,th{padding:.2em 1em;text-align:left;white-space:nowrap}"
        "svg{max-width:100%;height:auto}</style>"
        f"<div>{run_table.render_html(runs)}</div>{svg[svg.index('<svg') :]}</html>\n"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "logdirs", nargs="+", type=program.path, metavar="LOGDIR", help="of a run, or of several"
    )
    parser.add_argument(
        "--out", type=program.path, default=Path("report.png"), help=".png or .html"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, draws, and writes the page."""
    options = parse_arguments(argv)
    if options.out.suffix not in _FORMATS:
        raise UserError(f"--out: must end with .png or .html, got {options.out}")
    runs = run_logs.read_runs(
        options.logdirs, lambda line: print(f"report.py: {line}", file=sys.stderr)
    )
    files.check_writable(options.out, "out", is_folder=False)
    figure = draw(runs)
    if options.out.suffix == ".png":
        run_table.draw_below(figure, runs)
        with files.replacing(options.out) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    else:
        files.write_text(options.out, render_page(figure, runs))
    print(options.out)


if __name__ == "__main__":
    program.run(main)
