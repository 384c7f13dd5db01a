"""--histogram_every: how weights and gradients are spread, and their norms."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import TelemetryConfig
from trainer.telemetry.writers.protocol import Writer


class HistogramGraph(NamedTuple):
    """Serialized summaries, string []; () where there are to be none.

    Attributes:
      gradients: of each averaged gradient; to be run with the step that makes them.
      weights: of each trainable variable.
    """

    gradients: tf.Tensor
    weights: tf.Tensor


def build_histograms(
    config: TelemetryConfig, gradients: Sequence[tf.Tensor], variables: Sequence[tf.Variable]
) -> HistogramGraph:
    """Adds the summaries to the default graph: on every rank, so that all graphs are the same.

    They have no collectives of their own: rank 0 runs them alone.

    Args:
      config: says whether there are to be any.
      gradients: averaged, one for each variable.
      variables: trainable.
    """
    if not config.histogram_every:
        return HistogramGraph((), ())
    names = [variable.op.name for variable in variables]
    values = [variable.read_value() for variable in variables]
    with tf1.name_scope("histograms"):
        return HistogramGraph(
            gradients=_build_summaries("gradient", names, gradients),
            weights=_build_summaries("weight", names, values),
        )


def _build_summaries(kind: str, names: Sequence[str], values: Sequence[tf.Tensor]) -> tf.Tensor:
    """The histogram and the norm of each value, in one summary."""
    # The raw operations: those of tf.summary would have the name scope in their tags.
    parts = []
    for name, value in zip(names, values, strict=True):
        # TensorFlow refuses to draw what is not finite; the norm tells of it.
        finite = tf.where(tf.math.is_finite(value), value, tf.zeros_like(value))
        parts.append(tf.raw_ops.HistogramSummary(tag=f"{kind}/{name}", values=finite))
        norm = tf.norm(value)
        parts.append(tf.raw_ops.ScalarSummary(tags=f"{kind}_norm/{name}", values=norm))
    return tf.raw_ops.MergeSummary(inputs=parts)


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
