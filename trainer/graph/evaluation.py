"""The evaluation of one batch, as a graph."""

from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import accuracy, scopes
from trainer.graph.losses import build_cross_entropy
from trainer.graph.network import classify
from trainer.inputs.dataset import AnyDataset
from trainer.inputs.pipeline import Stream


class Predictions(NamedTuple):
    """Predictions for a batch, beside its labels.

    Attributes:
      labels: int32 [batch].
      classes: int32 [batch]: class that is predicted; see `accuracy`.
      weights: float32 [batch]: 1, or 0 for padding, which does not count.
    """

    labels: tf.Tensor
    classes: tf.Tensor
    weights: tf.Tensor


class EvaluationGraph(NamedTuple):
    """The evaluation of one batch.

    Attributes:
      totals: float64 [4]: number of examples, of those whose label has the highest logit, of those
        whose label is among the five highest; and the sum of cross-entropies.
      predictions: predicted class of each example, beside its label.
      logits: float32 [batch, num_classes].
      probabilities: float32 [batch, num_classes]: their softmax.
      confidences: float32 [batch]: probability of the class that is predicted.
      stream: the input.
      steps: number of batches, the same on every worker.
    """

    totals: tf.Tensor
    predictions: Predictions
    logits: tf.Tensor
    probabilities: tf.Tensor
    confidences: tf.Tensor
    stream: Stream
    steps: int


def build_evaluation_graph(config: Config, group: Group, dataset: AnyDataset) -> EvaluationGraph:
    """Adds the evaluation of a batch to the default graph."""
    with tf.name_scope(scopes.EVALUATION):
        stream = dataset.build_evaluation(group.worker)
        if stream.steps is None:
            raise ValueError("the stream of an evaluation must have an end")
        batch = stream.batch
        logits = classify(config, batch.images, num_classes=dataset.info.num_classes)
        cross_entropy = build_cross_entropy(logits, tf.one_hot(batch.labels, logits.shape[-1]))
        right = [accuracy.are_right(logits, batch.labels, among) for among in (1, 5)]
        rows = tf.stack([tf.ones_like(cross_entropy), *right, cross_entropy])
        # Padding counts nothing, not even where its cross-entropy is not finite.
        counted = tf.where(batch.weights > 0, rows, tf.zeros_like(rows))
        totals = tf.reduce_sum(tf.cast(counted, tf.float64), axis=1)
        classes = tf.cast(accuracy.predict(logits), tf.int32)
        weights = tf.where(accuracy.have_order(logits), batch.weights, tf.zeros_like(batch.weights))
        predictions = Predictions(batch.labels, classes, weights)
        probabilities = tf.nn.softmax(logits)
        return EvaluationGraph(
            totals=totals,
            predictions=predictions,
            logits=logits,
            probabilities=probabilities,
            confidences=tf.reduce_max(probabilities, axis=1),
            stream=stream,
            steps=stream.steps,
        )
