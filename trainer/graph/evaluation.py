"""The evaluation of one batch, as a graph."""

from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import accuracy, scopes
from trainer.graph.averages import Averages
from trainer.graph.losses import build_cross_entropy, build_probabilities
from trainer.graph.network import classify
from trainer.inputs.dataset import AnyDataset
from trainer.inputs.pipeline import Batch, Stream


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
        whose label is among the five highest; and the sum of cross-entropies. float64 [8] where
        weights have averages: then those of the averaged network.
      predictions: predicted class of each example, beside its label.
      logits: float32 [batch, num_classes].
      probabilities: float32 [batch, num_classes]: their softmax, or sigmoid with --loss=sigmoid.
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


def build_evaluation_graph(
    config: Config, group: Group, dataset: AnyDataset, averages: Averages | None = None
) -> EvaluationGraph:
    """Adds the evaluation of a batch to the default graph.

    Args:
      config: preprocessing, network and loss.
      group: the workers.
      dataset: the data.
      averages: averages of the weights, which are evaluated beside them; None: there are none.
    """
    with tf.name_scope(scopes.EVALUATION):
        stream = dataset.build_evaluation(group.worker)
        if stream.steps is None:
            raise ValueError("the stream of an evaluation must have an end")
        batch = stream.batch
        classes = dataset.info.num_classes
        logits = classify(config, batch.images, num_classes=classes)
        totals = _build_totals(config, logits, batch)
        if averages is not None:
            averaged = classify(
                config, batch.images, num_classes=classes, averages=averages.getter()
            )
            totals = tf.concat([totals, _build_totals(config, averaged, batch)], 0)
        predicted = tf.cast(accuracy.predict(logits), tf.int32)
        weights = tf.where(accuracy.have_order(logits), batch.weights, tf.zeros_like(batch.weights))
        predictions = Predictions(batch.labels, predicted, weights)
        probabilities = build_probabilities(logits, config.optimizer.loss)
        return EvaluationGraph(
            totals=totals,
            predictions=predictions,
            logits=logits,
            probabilities=probabilities,
            confidences=tf.reduce_max(probabilities, axis=1),
            stream=stream,
            steps=stream.steps,
        )


def _build_totals(config: Config, logits: tf.Tensor, batch: Batch) -> tf.Tensor:
    """Returns the sums over a batch: see `EvaluationGraph.totals`."""
    targets = tf.one_hot(batch.labels, logits.shape[-1])
    cross_entropy = build_cross_entropy(logits, targets, loss=config.optimizer.loss)
    right = [accuracy.are_right(logits, batch.labels, among) for among in (1, accuracy.BEST)]
    rows = tf.stack([tf.ones_like(cross_entropy), *right, cross_entropy])
    # Padding counts nothing, not even where its cross-entropy is not finite.
    counted = tf.where(batch.weights > 0, rows, tf.zeros_like(rows))
    return tf.reduce_sum(tf.cast(counted, tf.float64), axis=1)
