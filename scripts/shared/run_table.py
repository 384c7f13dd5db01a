"""A table of runs: their colours, their figures, and the flags that differ. For report.py."""

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shared import run_logs
from shared.run_logs import Run

import numpy as np

from trainer import timing
from trainer.telemetry.pages import fonts

if TYPE_CHECKING:  # At run time it is imported where it is needed, and may be missing.
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_MARK = "■"  # In the colour of a run.
_ROW_INCHES, _GAP_INCHES = 0.2, 0.3
_MOST_LETTERS = 40
_FONT = "DejaVu Sans"


def summarize(run: Run) -> dict[str, str]:
    """Returns the figures of a run that a person asks for first; times without the first steps."""
    curves = run.curves
    durations_ms = curves["perf/step_time_ms"].values
    timed = durations_ms[timing.warmup_steps(len(durations_ms)) :]
    figures = {"steps": f"{curves['perf/step_time_ms'].steps[-1]}"}
    if "eval/top1" in curves and np.isfinite(curves["eval/top1"].values).any():
        steps, values = curves["eval/top1"]
        best = np.nanargmax(values)
        figures["best top-1"] = f"{values[best]:.4f} after step {steps[best]}"
    for title, tag in (
        ("top-1, last", "eval/top1"),
        ("top-5, last", "eval/top5"),
        ("cross-entropy, last", "train/cross_entropy"),
    ):
        if tag in curves:
            last = curves[tag].values[-1]
            figures[title] = f"{last:.4f}" if np.isfinite(last) else "not finite"
    if "perf/images_per_sec" in curves:
        figures["images/s, median"] = f"{np.nanmedian(curves['perf/images_per_sec'].values):.1f}"
    figures["ms per step, p50 / p90 / p99"] = " / ".join(
        f"{np.nanpercentile(timed, share):.1f}" for share in (50, 90, 99)
    )
    return figures


def tabulate(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the columns by title: names, figures, and the flags that differ."""
    summaries = [summarize(run) for run in runs]
    titles = dict.fromkeys(title for figures in summaries for title in figures)
    columns = {"run": [run.name for run in runs]}
    columns |= {title: [figures.get(title, "") for figures in summaries] for title in titles}
    for name in run_logs.different_flags(runs):
        columns[f"--{name}"] = [run.flags.get(name, "") for run in runs]
    return columns


def colours_of(count: int) -> list[str]:
    """Returns a colour for each of some runs."""
    from matplotlib import colormaps, colors

    if count <= 20:
        shades = colormaps["tab10" if count <= 10 else "tab20"](range(count))
    else:
        shades = colormaps["turbo"](np.linspace(0.05, 0.95, count))
    return [colors.to_hex(shade) for shade in shades]


def render_html(runs: Sequence[Run]) -> str:
    """Renders the table as HTML."""
    columns = tabulate(runs)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ["", *columns])
    rows = "".join(
        f'<tr><td style="color:{colour}">{_MARK}</td>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for colour, *cells in zip(colours_of(len(runs)), *columns.values(), strict=True)
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def draw_below(figure: "Figure", runs: Sequence[Run]) -> None:
    """Makes a figure higher, and writes the table below what is drawn in it.

    Columns for which there is no room follow further below, beside the names once more.
    """
    import matplotlib

    columns = tabulate(runs)
    family, lacking = _find_fonts("".join(itertools.chain(*columns.values())))
    columns = {
        title: [_shorten(fonts.escape(cell, lacking)) for cell in cells]
        for title, cells in columns.items()
    }
    with matplotlib.rc_context({"font.family": family, "text.parse_math": False}):
        placed, table_inches = _write(figure, columns)
    width_inches, above_inches = figure.get_size_inches()
    whole_inches = above_inches + table_inches
    for text, top_inches in placed:
        text.set_y(table_inches - top_inches)
    figure.set_size_inches(width_inches, whole_inches)
    rect = (0, table_inches / whole_inches, 1, above_inches / whole_inches)
    figure.set_layout_engine("constrained", rect=rect)


def _write(
    figure: "Figure", columns: Mapping[str, Sequence[str]]
) -> tuple[list[tuple["Text", float]], float]:
    """Writes the columns.

    Returns:
      (texts with the distance of each from the top of the table, height of the table), inches.
    """
    (names_title, names), *others = columns.items()
    width_inches = figure.get_size_inches()[0]
    block_inches = (len(names) + 2) * _ROW_INCHES
    placed: list[tuple[Text, float]] = []

    def write(title: str, cells: Sequence[str]) -> list["Text"]:
        scale = figure.dpi_scale_trans  # Inches.
        column = [figure.text(0, 0, text, fontsize=9, transform=scale) for text in (title, *cells)]
        column[0].set_fontweight("bold")
        return column

    def width_of(column: Sequence["Text"]) -> float:
        return max(float(text.get_window_extent().width) for text in column) / figure.dpi

    def place(column: Sequence["Text"], left: float) -> float:
        """Returns where the next column may begin."""
        for row, text in enumerate(column, start=1):
            text.set_x(left)
            placed.append((text, top + row * _ROW_INCHES))
        return left + width_of(column) + _GAP_INCHES

    left, top = width_inches, -block_inches
    for title, cells in others:
        column = write(title, cells)
        if left + width_of(column) > width_inches:
            top += block_inches
            marks = write("", [_MARK] * len(names))
            for mark, colour in zip(marks[1:], colours_of(len(names)), strict=True):
                mark.set_color(colour)
            left = place(marks, _GAP_INCHES) - _GAP_INCHES / 2
            left = place(write(names_title, names), left)
        left = place(column, left)
    return placed, top + block_inches


def _shorten(text: str) -> str:
    """Returns a text without its middle, if it is long."""
    half = _MOST_LETTERS // 2
    return text if len(text) <= _MOST_LETTERS else f"{text[: half - 1]}…{text[-half:]}"


def _find_fonts(text: str) -> tuple[list[str], set[str]]:
    """Returns the fonts for a text, for matplotlib, and the characters that they lack."""
    from matplotlib import font_manager

    def lacking(path: str) -> set[str]:
        known = font_manager.get_font(path).get_charmap()
        return {character for character in text if ord(character) not in known}

    left = lacking(font_manager.findfont(_FONT))
    found = fonts.find_in_system(left) if left else None
    if found is None:
        return [_FONT], left
    try:
        font_manager.fontManager.addfont(found.path)
        other = font_manager.FontProperties(fname=found.path).get_name()
        return [_FONT, other], left & lacking(found.path)
    except (OSError, RuntimeError):  # It is of a kind that matplotlib does not read.
        return [_FONT], left
