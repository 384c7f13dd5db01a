"""The protocol of metric writers, and the writer that writes nothing."""

from collections.abc import Mapping
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

Scalars = Mapping[str, float]


class Writer(Protocol):
    """Writes scalars, summaries and the graph. Any of its methods may raise OSError."""

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        """Writes the scalars of a step.

        Args:
          step: number of the step, from 1.
          scalars: values by tag.
          wall_time: end of the step, seconds since 1970.
        """

    def write_summary(self, step: int, summary: tf1.Summary, *, wall_time: float) -> None:
        """Writes a summary: images, histograms, texts; step 0 is before the first step."""

    def write_graph(self, graph: tf.Graph) -> None:
        """Writes a finalized graph."""

    def flush(self) -> None:
        """Returns as soon as all that was written is in its file."""

    def close(self) -> None:
        """Flushes, and ends."""


class NullWriter:
    """The writer of ranks other than 0, and of runs without a --logdir."""

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
