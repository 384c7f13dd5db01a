"""--histogram_every: how weights and gradients are spread, and their norms."""

import time
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import TelemetryConfig
from trainer.graph.summaries import HistogramGraph
from trainer.telemetry.writers.protocol import Writer


class HistogramLog(Protocol):
    """Says at which steps there are histograms, and writes them."""

    def is_due(self, step: int) -> bool:
        """Whether `step` is to be run with the gradients' histograms."""

    def write(self, session: tf1.Session, step: int, gradients: bytes) -> None:
        """Writes the histograms of a step.

        Args:
          session: whose weights are drawn, too.
          step: the one that was just taken.
          gradients: what `HistogramGraph.gradients` was in it.
        """


class NullHistogramLog:
    """What ranks other than 0 get, and runs without histograms."""

    def is_due(self, step: int) -> bool:
        del step
        return False

    def write(self, session: tf1.Session, step: int, gradients: bytes) -> None:
        del session, step, gradients


class EveryFewSteps:
    """Writes them every `every` steps."""

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
    """The histograms of one worker of a run."""
    if rank != 0 or not config.histogram_every:
        return NullHistogramLog()
    return EveryFewSteps(graph.weights, config.histogram_every, writer)
