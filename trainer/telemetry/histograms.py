"""Histograms and norms of weights and gradients, for --histogram_every."""

import time
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import TelemetryConfig
from trainer.graph.summaries import HistogramGraph
from trainer.telemetry.writers.protocol import Writer


class HistogramLog(Protocol):
    """Writes the histograms of some steps."""

    def is_due(self, step: int) -> bool:
        """Returns whether `step` is to be run with the gradients' histograms."""

    def write(self, session: tf1.Session, step: int, gradients: bytes) -> None:
        """Writes the histograms of a step.

        Args:
          session: session that has the weights.
          step: number of the step that has just ended.
          gradients: value of `HistogramGraph.gradients` in it.
        """


class NullHistogramLog:
    """The log of ranks other than 0, and of runs without histograms."""

    def is_due(self, step: int) -> bool:
        del step
        return False

    def write(self, session: tf1.Session, step: int, gradients: bytes) -> None:
        del session, step, gradients


class EveryFewSteps:
    """Writes histograms every `every` steps."""

    def __init__(self, weights: tf.Tensor, every: int, writer: Writer) -> None:
        self._weights = weights
        self._every = every
        self._writer = writer

    def is_due(self, step: int) -> bool:
        return step % self._every == 0

    def write(self, session: tf1.Session, step: int, gradients: bytes) -> None:
        for data in (gradients, session.run(self._weights)):
            summary = tf1.Summary.FromString(data)
            self._writer.write_summary(step, summary, wall_time=time.time())


def create_histogram_log(
    config: TelemetryConfig, graph: HistogramGraph, *, rank: int, writer: Writer
) -> HistogramLog:
    """Returns the histogram log of one worker of a run."""
    if rank != 0 or not config.histogram_every:
        return NullHistogramLog()
    return EveryFewSteps(graph.weights, config.histogram_every, writer)
