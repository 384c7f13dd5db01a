"""The file metrics.jsonl: the scalars of the event file, for programs."""

import json
import math
import os
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.process import files
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.growing_file import GrowingFile
from trainer.telemetry.writers.protocol import Scalars


class JsonLinesWriter:
    """Appends a line per step to a file: the step, and its scalars under their tags.

    Scalars between steps, such as those of an evaluation, have lines of their own, with the number
    of the step before. Numbers that are not finite are null.
    """

    def __init__(self, path: Path, *, first_step: int | None = None) -> None:
        """Drops the lines that a restart will write again.

        Args:
          path: the file.
          first_step: first step that will be written. None: no line is dropped.

        Raises:
          OSError: the file can't be written without those lines.
        """
        if first_step is not None and path.exists():
            kept = "".join(metrics_lines.before(first_step, path))
            if len(kept.encode()) != path.stat().st_size:  # Else a full disk is no fault.
                files.write_text(path, kept)
        self._file = GrowingFile(path)
        if _is_cut(path):
            self._file.append(b"\n")

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        finite = {tag: v if math.isfinite(v) else None for tag, v in scalars.items()}
        line = json.dumps({"step": step, "wall_time": wall_time, **finite})
        self._file.append(f"{line}\n".encode())

    def write_summary(self, step: int, summary: tf1.Summary, *, wall_time: float) -> None:
        scalars = {
            value.tag: value.simple_value
            for value in summary.value
            if value.WhichOneof("value") == "simple_value"
        }
        if scalars:
            self.write(step, scalars, wall_time=wall_time)

    def write_graph(self, graph: tf.Graph) -> None:
        del graph

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _is_cut(path: Path) -> bool:
    """Returns whether a file ends within a line, as a killed process can leave it."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
