"""Summaries that a step computes for TensorBoard: histograms and norms of gradients and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import TelemetryConfig


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
