"""Curves and flags of runs, read from their folders without TensorFlow. For report.py."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from absl import flags as absl_flags

from flags import command_line
from trainer.checkpoints import layout
from trainer.config import Config, flag_file
from trainer.errors import UserError
from trainer.process import json_files, texts
from trainer.telemetry.writers import metrics_lines

_LARGEST = 1e300
_MOST_NAMED = 5  # Folders in a line about several.


class Curve(NamedTuple):
    """The values of a tag over a run.

    Attributes:
      steps: numbers of the steps, ascending: int64 [n].
      values: NaN where a value is not finite: float64 [n].
    """

    steps: npt.NDArray[Any]
    values: npt.NDArray[Any]


class Run(NamedTuple):
    """A run.

    Attributes:
      name: its folder, without what all folders have in common.
      curves: the curves by tag.
      flags: values as text by name, in the order of --help; only those that are known.
    """

    name: str
    curves: Mapping[str, Curve]
    flags: Mapping[str, str]


def read_runs(given: Iterable[Path], say: Callable[[str], object]) -> list[Run]:
    """Reads the runs in some folders and in the folders within them, each once.

    Args:
      given: the folders.
      say: gets a line for each folder that is passed over, and one for those within them.

    Raises:
      UserError: none of them is a run, nor has one in it.
    """
    given = list(given)
    found: dict[str, tuple[Path, dict[str, Curve]]] = {}
    refused = []
    others: dict[str, Path] = {}
    for folder in given:
        places, lacking = _find_metrics(folder)
        others |= {os.path.realpath(place): place for place in lacking}
        for place in places or [folder]:
            try:
                found.setdefault(os.path.realpath(place), (place, read_curves(place)))
            except UserError as error:
                refused.append(str(error))
    if not found:
        more = f", and {len(refused) - 1} more are no runs" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{more}: give the --logdir of a run")
    told = {os.path.realpath(folder) for folder in given}
    if passed := [str(path) for place, path in others.items() if place not in told]:
        refused.append(_describe_lacking(passed))
    for line in refused:
        say(f"passed over: {line}")
    names = _shorten([str(folder) for folder, _ in found.values()])
    return [
        Run(name, curves, read_flags(folder, say))
        for name, (folder, curves) in zip(names, found.values(), strict=True)
    ]


def _find_metrics(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the folders of runs in a folder, itself too, and those that belong to no run.

    Folders behind links count. The second are those without a metrics file that are not in the
    folder of a run and have none in them: of folders within each other the outer one. The folder
    itself and hidden ones are not among them.
    """
    seen = set()
    places, runs = [], []
    for name, inner, names in os.walk(folder, followlinks=True):
        if os.path.realpath(name) in seen:  # A link to where it is itself.
            inner.clear()
            continue
        seen.add(os.path.realpath(name))
        inner.sort()
        places.append(Path(name))
        if metrics_lines.NAME in names:
            runs.append(places[-1])
    around_runs = {parent for run in runs for parent in run.parents}

    def is_of_run(place: Path) -> bool:
        return place in around_runs or not {place, *place.parents}.isdisjoint(runs)

    outer = (place for place in places if place != folder and place.parent in around_runs)
    others = [place for place in outer if not (is_of_run(place) or place.name.startswith("."))]
    return runs, others


def _describe_lacking(places: Sequence[str]) -> str:
    """Returns the line about folders in which there is no run."""
    if len(places) == 1:
        return f"{places[0]} has no {metrics_lines.NAME}"
    named, more = places[:_MOST_NAMED], len(places) - _MOST_NAMED
    rest = f" and {more} more folders" if more > 0 else ""
    return f"{', '.join(named)}{rest} have no {metrics_lines.NAME}"


def _shorten(paths: Sequence[str]) -> list[str]:
    """Returns several paths without the folder that all are in."""
    kinds = {os.path.isabs(path) for path in paths}
    common = (
        os.path.commonpath([os.path.dirname(path) for path in paths]) if len(kinds) == 1 else ""
    )
    if len(paths) > 1 and common not in ("", "/"):
        paths = [path[len(common) + 1 :] for path in paths]
    return [texts.printable(path) for path in paths]


def read_curves(folder: Path, needed: Sequence[str] = ()) -> dict[str, Curve]:
    """Reads the curves of a run, by tag.

    Args:
      folder: the run's folder.
      needed: tags that must be there.

    Raises:
      UserError: the folder has no metrics of training, or not all that are needed.
    """
    path = folder / metrics_lines.NAME
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        what = f"has no {metrics_lines.NAME}" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {what}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    for line in text.splitlines():
        values = metrics_lines.parse_line(line)
        for tag, value in values.items():
            number = np.nan if value is None else value
            if tag != "step" and isinstance(number, int | float):
                number = float(number) if abs(number) < _LARGEST else np.nan
                points.setdefault(tag, []).append((values["step"], number))
    curves = {tag: _as_curve(pairs) for tag, pairs in points.items()}
    timed = curves.get("perf/step_time_ms")
    if timed is None or not np.isfinite(timed.values).any():
        raise UserError(f"{path} has no training steps")
    missing = next((tag for tag in needed if tag not in curves), None)
    if missing is not None:
        raise UserError(f"{path} has no {missing}: another version has written it")
    return curves


def _as_curve(points: Sequence[tuple[int, float]]) -> Curve:
    steps, values = (np.array(part) for part in zip(*points, strict=True))
    order = np.argsort(steps, kind="stable")
    return Curve(steps[order], values[order])


def read_flags(folder: Path, say: Callable[[str], object]) -> dict[str, str]:
    """Reads the values of a run's flags, by name: of all, or of its network's where that is all.

    Args:
      folder: the folder of the run.
      say: gets a line for each file that is damaged.
    """
    values: dict[str, Any] = {}
    path = folder / flag_file.NAME
    if path.is_file():
        try:
            # Some flags need a folder for logs; which one is no matter.
            words = ["", f"--flagfile={path}", "--logdir=."]
            config = command_line.parse(words, absl_flags.FlagValues())  # type: ignore[no-untyped-call]
            values = {flag.name: flag.value for flag in config.flags()}
        except UserError as error:
            say(f"{path}: its flags are not compared ({error})")
    path = folder / layout.MODEL
    if path.is_file():
        try:
            values |= json_files.build(dict[str, Any], json_files.read(path))
        except (OSError, json_files.FormatError) as error:
            say(f"{path}: its flags are not compared ({error})")
    names = [flag.name for flag in Config().flags()]
    return {name: _describe(values[name]) for name in names if name in values}


def _describe(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else texts.printable(str(value))


def different_flags(runs: Sequence[Run]) -> list[str]:
    """Returns the names of the flags of which the runs are known to have different values."""
    names = list(dict.fromkeys(name for run in runs for name in run.flags))
    return [
        name for name in names if len({run.flags[name] for run in runs if name in run.flags}) > 1
    ]
