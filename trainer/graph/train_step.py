"""The graph of the training step."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from models.slim_compat import BatchNormChanges
from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import accuracy, images, optimizers, precision, recompute, reduction, scopes
from trainer.graph.accumulation import Accumulator
from trainer.graph.averages import Averages, create_averages
from trainer.graph.loss_scale import LossScale
from trainer.graph.losses import Losses, build_losses
from trainer.graph.moving_statistics import Statistics
from trainer.graph.network import build_logits
from trainer.graph.selection import Selection
from trainer.graph.summaries import HistogramGraph, build_histograms
from trainer.graph.sync_batch_norm import SyncBatchNorm
from trainer.inputs.dataset import AnyDataset
from trainer.inputs.pipeline import Batch, Stream


class StepMetrics(NamedTuple):
    """Metrics of a training step: tensors in the graph, Python numbers once a step has run.

    They are float32 [], but for the times: float64 [], seconds. Losses and accuracy are means over
    the examples of all workers; the times are this worker's.

    Attributes:
      loss: cross-entropy plus weight decay and what the network adds to REGULARIZATION_LOSSES.
      cross_entropy: cross-entropy, with label smoothing where there is any.
      weight_decay_loss: weight_decay * sum(w^2) / 2 over all kernels that are trained; 0 where the
        update rule decays them itself.
      gradient_norm: L2 norm of the averaged gradient of all variables that are trained, before it
        is clipped.
      top1: share of the batch's images whose label got the highest logit.
      request: number above 0 where any worker was fed a request, else 0.
      is_applied: 1, or 0 where the loss or the averaged gradient was not finite: then variables,
        optimizer slots and moving statistics are as before.
      loss_scale: loss scale of the step; 1 where the precision needs none.
      nonfinite_gradient: int32 []: index in `TrainGraph.gradient_names` of the first variable whose
        gradient's norm was not finite on this worker; -1 where there is none.
      data_wait_sec: time for which the step waited for its input.
      gradients_ready_sec: moment at which this worker's gradients were ready, since 1970.
    """

    loss: tf.Tensor
    cross_entropy: tf.Tensor
    weight_decay_loss: tf.Tensor
    gradient_norm: tf.Tensor
    top1: tf.Tensor
    request: tf.Tensor
    is_applied: tf.Tensor
    loss_scale: tf.Tensor
    nonfinite_gradient: tf.Tensor
    data_wait_sec: tf.Tensor
    gradients_ready_sec: tf.Tensor


class TrainGraph(NamedTuple):
    """The graph of a complete training step.

    Attributes:
      train_op: operation that updates variables, optimizer slots and BN's moving statistics, where
        all is finite, and `global_step` in any case.
      metrics: metrics of the step, before its update.
      accumulate_op: operation that each batch of an update but the last runs instead of `train_op`.
      accumulate_wait_sec: float64 []: time for which that batch waited for its input.
      batches_per_update: value of --accumulate_steps.
      learning_rate: float32 [], to be fed.
      request: float32 [], 0 unless it is fed: any worker's request reaches all workers as
        `metrics.request`.
      gradient_names: names of the variables that have gradients.
      averages: averages of --ema_decay; None: there are none.
      global_step: int64 []: number of steps done.
      stream: the input.
      broadcast_op: operation that gives every worker rank 0's variables, and returns the number of
        steps done, int64 []; to be run before the first step.
      histograms: histograms of gradients and weights.
      recomputed: the effect of --recompute.
    """

    train_op: tf.Operation
    metrics: StepMetrics
    accumulate_op: tf.Operation
    accumulate_wait_sec: tf.Tensor
    batches_per_update: int
    learning_rate: tf.Tensor
    request: tf.Tensor
    gradient_names: tuple[str, ...]
    averages: Averages | None
    global_step: tf.Variable
    stream: Stream
    broadcast_op: tf.Tensor
    histograms: HistogramGraph
    recomputed: recompute.Recomputed

    def create_step(
        self, session: tf1.Session, *, also: Any = ()
    ) -> Callable[[float, float], tuple[StepMetrics, Any]]:
        """Returns the function that runs a step: (learning rate, request) -> its metrics.

        Args:
          session: session that has the variables.
          also: further fetches of the step, which the function returns after the metrics.
        """
        fetches = [self.metrics, also, self.train_op]
        update = session.make_callable(fetches, [self.learning_rate, self.request])
        accumulate = session.make_callable([self.accumulate_wait_sec, self.accumulate_op])

        def run_step(rate: float, request: float) -> tuple[StepMetrics, Any]:
            waited_sec = sum(accumulate()[0] for _ in range(self.batches_per_update - 1))
            fetched, others, _ = update(rate, request)
            metrics = StepMetrics(*(value.item() for value in fetched))
            return metrics._replace(data_wait_sec=metrics.data_wait_sec + waited_sec), others

        return run_step


def build_train_graph(config: Config, group: Group, dataset: AnyDataset) -> TrainGraph:
    """Adds the training step to the default graph, the same on every worker."""
    stream, batch, wait_sec = _build_timed_input(config, group, dataset)
    selection = Selection(config.fine_tuning)
    inputs, losses, top1 = _build_forward(config, group, batch, dataset.info.num_classes, selection)
    with tf.name_scope(scopes.UPDATE):
        learning_rate = tf1.placeholder(tf.float32, [], name="learning_rate")
        request = tf1.placeholder_with_default(0.0, [], name="request")
    update_rule = optimizers.UpdateRule(config, learning_rate)
    loss_scale = LossScale(config.model.precision)
    scaled = loss_scale.multiply(losses.total)
    gradients, variables, recomputed = _compute_gradients(config, scaled, selection, inputs)
    scalars = [losses.total, losses.cross_entropy, top1]
    batches = config.optimizer.accumulate_steps
    with tf.name_scope(scopes.GRADIENTS):
        accumulator = Accumulator([*gradients, *scalars], batches)
    local, scalars = accumulator.means[: len(gradients)], accumulator.means[len(gradients) :]
    with tf.name_scope(scopes.GRADIENTS), tf.control_dependencies(local):
        gradients_ready_sec = _build_now(config)
    names = [variable.op.name for variable in variables]
    reduced = reduction.reduce_gradients(config, group, local, names)
    averaged = [loss_scale.divide(gradient) for gradient in reduced]
    with tf.name_scope(scopes.GRADIENTS):
        update_ops = tf.group(*tf1.get_collection(tf1.GraphKeys.UPDATE_OPS))
        accumulate_op = tf.group(accumulator.add_op, update_ops)
        all_done = tf.group(update_ops, *(gradient.op for gradient in local))
    moving = selection.moving_variables()
    statistics = Statistics(group, [*scalars, request], moving, all_done)
    with tf.name_scope(scopes.CHECKS):
        loss, cross_entropy, top1, requested = tf.unstack(statistics.scalars)
        gradient_norm = tf.linalg.global_norm(averaged)
        # All workers see the same loss and gradients: all of them apply the update, or none.
        is_finite = tf.math.is_finite(loss + gradient_norm)
        is_applied = tf.cast(is_finite, tf.float32)
        nonfinite = tf.cond(is_finite, lambda: tf.constant(-1), lambda: _find_nonfinite(local))
    global_step = tf1.train.get_or_create_global_step()
    averages = create_averages(config.optimizer, [*variables, *moving])
    # Outside of name scopes, which would be part of the names of an optimizer's variables.
    with tf.control_dependencies([is_finite, nonfinite]):
        update = update_rule.build_update(averaged, variables, gradient_norm, is_finite)
    with tf.name_scope(scopes.UPDATE), tf.control_dependencies([is_finite, nonfinite]):
        updates = [update, statistics.build_update(is_finite)]
        if averages is not None:
            updates.append(averages.build_update(global_step, is_finite, after=updates))
        with tf.control_dependencies(updates):
            counted = global_step.assign_add(1, read_value=False)
        train_op = tf.group(
            *updates, loss_scale.build_update(is_finite), accumulator.build_reset(), counted
        )
    return TrainGraph(
        train_op=train_op,
        metrics=StepMetrics(
            loss=loss,
            cross_entropy=cross_entropy,
            weight_decay_loss=losses.weight_decay,
            gradient_norm=gradient_norm,
            top1=top1,
            request=requested,
            is_applied=is_applied,
            loss_scale=loss_scale.value,
            nonfinite_gradient=nonfinite,
            data_wait_sec=wait_sec,
            gradients_ready_sec=gradients_ready_sec,
        ),
        accumulate_op=accumulate_op,
        accumulate_wait_sec=wait_sec,
        batches_per_update=batches,
        learning_rate=learning_rate,
        request=request,
        gradient_names=tuple(names),
        averages=averages,
        global_step=global_step,
        stream=stream,
        broadcast_op=_build_start(group, statistics, accumulator, global_step),
        histograms=build_histograms(config.telemetry, averaged, variables),
        recomputed=recomputed,
    )


def _build_timed_input(
    config: Config, group: Group, dataset: AnyDataset
) -> tuple[Stream, Batch, tf.Tensor]:
    """Returns the stream, its batch, and the time waited for the batch: float64 [], seconds."""
    with tf.name_scope(scopes.INPUTS):
        began = _build_now(config)
    with tf.control_dependencies([began]):
        stream = dataset.build_train(group.worker, seed=config.run.seed)
    batch = stream.batch
    with tf.name_scope(scopes.INPUTS):
        with tf.control_dependencies([batch.images]):
            data_ready = _build_now(config)
        with tf.control_dependencies([data_ready]):
            batch = batch._replace(images=tf.identity(batch.images))
        return stream, batch, data_ready - began


def _build_forward(
    config: Config, group: Group, batch: Batch, num_classes: int, selection: Selection
) -> tuple[tf.Tensor, Losses, tf.Tensor]:
    """Adds the network and its losses.

    Returns:
      the network's input; the losses; the share of images that are right.
    """
    with tf.name_scope(scopes.INPUTS):
        network_input = images.network_input(batch, config.data)
        compute_input = tf.cast(network_input, precision.compute_dtype(config.model.precision))
    joined = SyncBatchNorm(group)
    is_joined = config.model.sync_batch_norm and group.worker.size > 1
    logits = build_logits(
        config.model,
        compute_input,
        num_classes=num_classes,
        is_training=True,
        batch_norm=BatchNormChanges(
            selection.is_frozen_norm, joined.normalize if is_joined else None
        ),
    )
    if is_joined:
        joined.check(selection.count_norms())
    variables = selection.trained_variables()
    with tf.name_scope(scopes.LOSSES):
        losses = build_losses(config, logits, batch, variables)
        return network_input, losses, tf.reduce_mean(accuracy.are_right(logits, batch.labels))


def _compute_gradients(
    config: Config, loss: tf.Tensor, selection: Selection, inputs: tf.Tensor
) -> tuple[list[tf.Tensor], list[tf.Variable], recompute.Recomputed]:
    """Returns the gradients of the loss, and the trained variables that they belong to.

    Last comes what --recompute did.
    """
    variables = selection.trained_variables()
    gradients, recomputed = recompute.compute_gradients(
        loss, variables, inputs=inputs, config=config.model
    )
    pairs = zip(gradients, variables, strict=True)
    found = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    return [gradient for gradient, _ in found], [variable for _, variable in found], recomputed


def _find_nonfinite(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the index of the first gradient whose norm is not finite, int32 []; -1: all are."""
    # One operation for each gradient: hundreds are built, and in a good step none of them runs.
    good = tf.math.is_finite(tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients]))
    first = tf.argmin(tf.cast(good, tf.int32), output_type=tf.int32)
    return tf.where(tf.reduce_all(good), -1, first)


def _build_start(
    group: Group, statistics: Statistics, accumulator: Accumulator, global_step: tf.Variable
) -> tf.Tensor:
    """Adds the operation that gives every worker rank 0's variables, the number of steps too.

    It returns that number, since each new set of fetches has TensorFlow go through the whole graph.
    """
    with tf.name_scope(scopes.START):
        broadcast_op = group.build_broadcast(tf1.global_variables())
        with tf.control_dependencies([broadcast_op]):
            begun = tf.group(statistics.build_begin(), accumulator.build_reset())
        with tf.control_dependencies([begun]):
            return global_step.read_value()


def _build_now(config: Config) -> tf.Tensor:
    """Returns the time at which the operation runs: float64 [], seconds since 1970."""
    if not config.run.deterministic:
        return tf.timestamp()
    # tf.timestamp is refused where operations are to be deterministic.
    return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])
