"""Metric writers: each takes what a run tells of a step, and keeps it somewhere."""

from collections.abc import Mapping
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

Scalars = Mapping[str, float]


class Writer(Protocol):
    """Keeps scalars, summaries and the graph. Any of its methods may raise OSError."""

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        """Keeps the scalars of a step.

        Args:
          step: counts from 1.
          scalars: values by tag.
          wall_time: when the step ended, seconds since 1970.
        """

    def write_summary(self, step: int, summary: tf1.Summary, *, wall_time: float) -> None:
        """Keeps a summary: images, histograms, texts; 0 is the step before the first."""

    def write_graph(self, graph: tf.Graph) -> None:
        """Keeps a finalized graph."""

    def flush(self) -> None:
        """Returns when all that was written is in its file."""

    def close(self) -> None:
        """Flushes what was written, and ends."""


class NullWriter:
    """What ranks other than 0 get, and runs without a --logdir."""

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        del step, scalars, wall_time

    def write_summary(self, step: int, summary: tf1.Summary, *, wall_time: float) -> None:
        del step, summary, wall_time

    def write_graph(self, graph: tf.Graph) -> None:
        del graph

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
