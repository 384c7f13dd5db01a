"""Summaries for TensorBoard: histograms and norms of gradients and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from trainer.config import TelemetryConfig
from trainer.graph import scopes

# Tags begin so.
GRADIENT_NORM = "gradient_norm"
WEIGHT_NORM = "weight_norm"


class HistogramGraph(NamedTuple):
    """Serialized summaries, string [] each; () in runs without histograms.

    Attributes:
      gradients: summary of all averaged gradients, to be run with the step that computes them.
      weights: summary of all trainable variables.
    """

    gradients: tf.Tensor
    weights: tf.Tensor


def build_histograms(
    config: TelemetryConfig, gradients: Sequence[tf.Tensor], variables: Sequence[tf.Variable]
) -> HistogramGraph:
    """Adds the summaries to the default graph, on every rank, so that all graphs are the same.

    They contain no collectives: rank 0 alone runs them.

    Args:
      config: has --histogram_every.
      gradients: averaged gradients, one for each variable, float32 of its shape.
      variables: trainable variables.
    """
    if not config.histogram_every:
        return HistogramGraph((), ())
    names = [variable.op.name for variable in variables]
    with tf.name_scope(scopes.HISTOGRAMS):
        values = [variable.read_value() for variable in variables]
        return HistogramGraph(
            gradients=_build_summaries("gradient", GRADIENT_NORM, names, gradients),
            weights=_build_summaries("weight", WEIGHT_NORM, names, values),
        )


def _build_summaries(
    kind: str, norm_kind: str, names: Sequence[str], values: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Adds the histogram and the norm of each value, in one summary: string []."""
    # Raw operations, since those of tf.summary put the name scope into their tags.
    parts = []
    for name, value in zip(names, values, strict=True):
        # HistogramSummary refuses what is not finite; the norm shows it.
        finite = tf.where(tf.math.is_finite(value), value, tf.zeros_like(value))
        parts.append(tf.raw_ops.HistogramSummary(tag=f"{kind}/{name}", values=finite))
        norm = tf.norm(value)
        parts.append(tf.raw_ops.ScalarSummary(tags=f"{norm_kind}/{name}", values=norm))
    return tf.raw_ops.MergeSummary(inputs=parts)
