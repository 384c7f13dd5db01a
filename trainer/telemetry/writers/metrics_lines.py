"""Reads metrics.jsonl, which has a line of JSON for each step; a killed run leaves a torn one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.process import json_files

# Within the log folder.
NAME = "metrics.jsonl"
_TAIL_BYTES = 1 << 16  # More than the longest lines.


def newest_step(path: Path, tag: str) -> int:
    """Returns the latest step with a number under `tag` in a metrics file; -1: there is none."""
    return max(steps_with(path, tag), default=-1)


def steps_with(path: Path, tag: str) -> set[int]:
    """Returns the steps that have a number under `tag` in a metrics file."""
    steps: set[int] = set()
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            if f'"{tag}"' in line:
                steps.add(parse_line(line).get("step", -1))
    return steps


def last_step(path: Path) -> int:
    """Returns the latest step among the last lines of a metrics file; -1: there is none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
        return max((parse_line(line).get("step", -1) for line in lines), default=-1)
    return -1


def parse_line(line: str) -> dict[str, Any]:
    """Returns the fields of a line of a metrics file; empty where it is torn, or worse.

    `step` is a whole number.
    """
    try:
        fields = json_files.parse(line)
        json_files.build(int, fields["step"])
    except (json_files.FormatError, LookupError, TypeError):
        return {}
    return dict(fields)


def before(first_step: int, path: Path) -> Iterator[str]:
    """Yields the complete lines of a metrics file that belong to earlier steps."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if parse_line(line).get("step", first_step) < first_step and line.endswith("\n"):
                yield line
