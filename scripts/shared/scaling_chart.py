"""Draws how runs scale: images per second, efficiency, parts of a step. For scaling.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.scaling_runs import Parts, Row

from trainer.errors import UserError
from trainer.process import files

if TYPE_CHECKING:  # At run time it is imported where it is needed, and may be missing.
    from matplotlib.axes import Axes

_PARTS = ("data", "compute", "communication")


def draw(series: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draws all series into a picture: a row of four plots for each.

    Args:
      series: rows by title.
      path: of a PNG.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{error}. Install it: pip install matplotlib") from error
    figure = Figure(figsize=(16, 3.4 * len(series)), layout="constrained")
    plots = figure.subplots(len(series), 4, squeeze=False)
    for (title, rows), (rates, shares, parts, times) in zip(series.items(), plots, strict=True):
        workers = [row.workers for row in rows]
        rates.plot(workers, [row.images_per_sec for row in rows], "o-", label="measured")
        ideal = rows[0].images_per_sec / rows[0].workers
        rates.plot(workers, [ideal * each for each in workers], "--", color="grey", label="ideal")
        rates.set_title(f"{title}: images/s", fontsize=10)
        rates.legend(fontsize=8)
        shares.plot(workers, [100 * row.efficiency for row in rows], "o-")
        shares.axhline(100, linestyle="--", color="grey")
        shares.set_title("efficiency, %", fontsize=10)
        timed = [row for row in rows if row.parts is not None]
        places = [str(row.workers) for row in timed]
        bottom = [0.0] * len(timed)
        for part in _PARTS:
            heights = [100 * getattr(row.parts, part) for row in timed]
            parts.bar(
                places,
                heights,
                bottom=bottom,
                label=part.replace("communication", "communication, update"),
                width=0.6,
            )
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        parts.set_title("parts of a step, %", fontsize=10)
        if timed:
            parts.legend(fontsize=8, loc="lower right")
        draw_times(times, [row.workers for row in timed], [row.parts for row in timed])
        for axes in (rates, shares, times):
            axes.set_ylim(bottom=0)
            axes.set_xticks(workers)
            axes.grid(alpha=0.3)
        for axes in (rates, shares, parts, times):
            axes.set_xlabel("workers", fontsize=8)
            axes.tick_params(labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def draw_times(axes: "Axes", workers: Sequence[int], parts: Sequence[Parts | None]) -> None:
    """Draws the median of the workers' times, with a bar from the fastest to the slowest."""
    for number, part in zip(workers, parts, strict=True):
        if part is not None:
            spread = [[part.middle_ms - part.fastest_ms], [part.slowest_ms - part.middle_ms]]
            axes.errorbar([number], [part.middle_ms], yerr=spread, fmt="o", capsize=4, color="C0")
    axes.set_title("workers' own times, ms: min, median, max", fontsize=10)
