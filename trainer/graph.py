"""The training step and the evaluation of one batch, as graphs."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from models.slim_compat import slim
from trainer import optimizers, precision
from trainer.config import Config, ConfigError, ModelConfig
from trainer.distributed import Group
from trainer.inputs import device
from trainer.inputs.dataset import Dataset, SyntheticDataset
from trainer.inputs.pipeline import Batch, Stream
from trainer.step import cpu_gradients
from trainer.step.accumulation import Accumulator
from trainer.step.loss_scale import LossScale
from trainer.step.statistics import Statistics
from trainer.telemetry.histograms import HistogramGraph, build_histograms

AnyDataset = Dataset | SyntheticDataset


class StepMetrics(NamedTuple):
    """What a training step tells of itself. float32 [], but for the times: float64 [], seconds.

    Losses and accuracy are means over the examples of all workers; the times are this worker's.

    Attributes:
      loss: cross-entropy and weight decay, and what the network adds to REGULARIZATION_LOSSES.
      cross_entropy: with label smoothing, where there is any.
      weight_decay_loss: weight_decay * sum(w^2) / 2 over the convolution weights.
      gradient_norm: L2 norm of the averaged gradient of all trainable variables.
      top1: share of the batch's images that were classified right.
      request: above 0 where any worker was fed a request.
      is_applied: 1, or 0 where the loss or the averaged gradient was not finite: then variables,
        optimizer slots and moving statistics are as before.
      loss_scale: of the step; 1 where the precision needs none.
      nonfinite_gradient: int32 []: of the first variable whose gradient was not finite on this
        worker, its index in `TrainGraph.gradient_names`; -1 where there is none.
      data_wait_sec: how long the step waited for its input.
      gradients_ready_sec: when this worker's gradients were ready, since 1970.
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


class Losses(NamedTuple):
    """float32 []: their sum, the cross-entropy's mean over the batch, and the weight decay."""

    total: tf.Tensor
    cross_entropy: tf.Tensor
    weight_decay: tf.Tensor


class TrainGraph(NamedTuple):
    """A complete training step.

    Attributes:
      train_op: updates variables, optimizer slots and BN's moving statistics, where all is finite,
        and `global_step` in any case.
      metrics: of the step, before its update.
      accumulate_op: what each batch of an update but the last runs instead of `train_op`.
      accumulate_wait_sec: float64 []: how long it waited for its input.
      batches_per_update: --accumulate_steps.
      learning_rate: float32 [], to be fed.
      request: float32 [], may be fed: above 0 tells all workers, in `metrics.request`.
      gradient_names: the variables that have gradients.
      global_step: int64 [], steps taken.
      stream: the input.
      broadcast_op: gives every worker rank 0's variables; to be run before the first step.
      histograms: of gradients and weights.
    """

    train_op: tf.Operation
    metrics: StepMetrics
    accumulate_op: tf.Operation
    accumulate_wait_sec: tf.Tensor
    batches_per_update: int
    learning_rate: tf.Tensor
    request: tf.Tensor
    gradient_names: tuple[str, ...]
    global_step: tf.Variable
    stream: Stream
    broadcast_op: tf.Operation
    histograms: HistogramGraph

    def create_step(
        self, session: tf1.Session, *, also: Any = ()
    ) -> Callable[[float, float], tuple[StepMetrics, Any]]:
        """A function that takes a step: (learning rate, request) -> its metrics, as numbers.

        Args:
          session: holds the variables.
          also: what else to fetch in the step; the function returns it after the metrics.
        """
        fetches = [self.metrics, also, self.train_op]
        update = session.make_callable(fetches, [self.learning_rate, self.request])
        accumulate = session.make_callable([self.accumulate_wait_sec, self.accumulate_op])

        def take_step(rate: float, request: float) -> tuple[StepMetrics, Any]:
            waited_sec = sum(accumulate()[0] for _ in range(self.batches_per_update - 1))
            metrics, others, _ = update(rate, request)
            return metrics._replace(data_wait_sec=metrics.data_wait_sec + waited_sec), others

        return take_step


class Answers(NamedTuple):
    """What the network says of a batch.

    Attributes:
      labels: int32 [batch].
      predictions: int32 [batch]: the class with the highest logit.
      weights: float32 [batch]: 0 for a row that does not count.
    """

    labels: tf.Tensor
    predictions: tf.Tensor
    weights: tf.Tensor


class EvaluationGraph(NamedTuple):
    """The evaluation of one batch.

    Attributes:
      totals: float64 [4]: examples, right at first, right among the first 5, summed cross-entropy.
      answers: of each example.
      stream: the input.
      steps: batches, the same number on every worker.
    """

    totals: tf.Tensor
    answers: Answers
    stream: Stream
    steps: int


@contextlib.contextmanager
def explain_errors(stream: Stream) -> Iterator[None]:
    """Raises the stream's own UserError where it is what ended a session's run."""
    try:
        yield
    except tf.errors.OpError as error:
        reason = stream.explain(error)
        if reason is None:
            raise
        reason.known_to_all = False
        raise reason from error


def find_network(config: ModelConfig, image_size: int) -> models.Network:
    """The network that --model names.

    Raises:
      ConfigError: there is none, or images of `image_size` pixels are too small for it.
    """
    try:
        network = models.get(config.model)
    except models.UnknownModelError as error:
        raise ConfigError(f"--model: {error}") from None
    try:
        models.check_image_size(network, image_size)
    except ValueError as error:
        raise ConfigError(f"--image_size: {error}") from None
    return network


def build_logits(
    config: ModelConfig, images: tf.Tensor, *, num_classes: int, is_training: bool
) -> tf.Tensor:
    """The network's answer; its variables are shared by all calls within a graph.

    Args:
      config: the network, its arg scope and its precision.
      images: float32 [batch, size, size, 3], normalized.
      num_classes: of the logits.
      is_training: whether BN uses the batch's statistics.

    Returns:
      logits: float32 [batch, num_classes].
    """
    network = find_network(config, images.shape[1])
    dtype = precision.compute_dtype(config.precision)
    # Weight decay is not the arg scope's here: its losses would be computed from the cast copies
    # of the variables, in low precision. See build_weight_decay.
    arg_scope = network.arg_scope_fn(
        weight_decay=0.0,
        batch_norm_decay=config.batch_norm_decay,
        batch_norm_epsilon=config.batch_norm_epsilon,
        is_training=is_training,
    )
    getter = precision.create_variable_getter(dtype)
    with (
        tf1.variable_scope("", custom_getter=getter, reuse=tf1.AUTO_REUSE),
        slim.arg_scope(arg_scope),
        cpu_gradients.faster_gradients(dtype),
    ):
        logits, _ = network.fn(
            tf.cast(images, dtype), num_classes=num_classes, is_training=is_training
        )
    return tf.cast(logits, tf.float32)


def build_cross_entropy(
    logits: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """The cross-entropy of each example: float32 [batch].

    Args:
      logits: float32 [batch, num_classes].
      targets: float32 [batch, num_classes], the share of every class in each example.
      label_smoothing: share of the target that is spread evenly over all classes.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def build_weight_decay(config: ModelConfig) -> tf.Tensor:
    """The weight-decay loss, float32 []: of the kernels, which slim names `weights`, alone."""
    kernels = [v for v in tf1.trainable_variables() if v.op.name.endswith("/weights")]
    if not kernels:
        return tf.constant(0.0)
    return config.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


def build_losses(config: Config, logits: tf.Tensor, batch: Batch) -> Losses:
    """The losses of a batch: `logits` are float32 [batch, num_classes].

    The total has whatever else the network put into REGULARIZATION_LOSSES, too.
    """
    smoothing = config.optimizer.label_smoothing
    targets = device.targets(batch, logits.shape[-1])
    cross_entropy = tf.reduce_mean(build_cross_entropy(logits, targets, smoothing))
    weight_decay = build_weight_decay(config.model)
    others = [tf.cast(term, tf.float32) for term in tf1.losses.get_regularization_losses()]
    return Losses(tf.add_n([cross_entropy, weight_decay, *others]), cross_entropy, weight_decay)


def build_train_graph(config: Config, group: Group, dataset: AnyDataset) -> TrainGraph:
    """Adds the training step to the default graph, the same on every worker."""
    stream, batch, wait_sec = _build_timed_input(config, group, dataset)
    logits = build_logits(
        config.model,
        device.network_input(batch, config.data),
        num_classes=dataset.info.num_classes,
        is_training=True,
    )
    losses = build_losses(config, logits, batch)
    right = tf.equal(tf.argmax(logits, 1, output_type=batch.labels.dtype), batch.labels)
    top1 = tf.reduce_mean(tf.cast(right, tf.float32))

    learning_rate = tf1.placeholder(tf.float32, [], name="learning_rate")
    request = tf1.placeholder_with_default(0.0, [], name="request")
    optimizer = optimizers.create_optimizer(config.optimizer, learning_rate)
    loss_scale = LossScale(config.model.precision)
    gradients, variables = _compute_gradients(optimizer, loss_scale.multiply(losses.total))
    scalars = [losses.total, losses.cross_entropy, top1]
    batches = config.optimizer.accumulate_steps
    accumulator = Accumulator([*gradients, *scalars], batches)
    local, scalars = accumulator.means[: len(gradients)], accumulator.means[len(gradients) :]
    with tf.control_dependencies(local):
        gradients_ready_sec = _build_now(config)
    averaged = [
        loss_scale.divide(_average_gradient(config, group, gradient, variable.op.name))
        for gradient, variable in zip(local, variables, strict=True)
    ]
    update_ops = tf.group(*tf1.get_collection(tf1.GraphKeys.UPDATE_OPS))
    statistics = Statistics(group, [*scalars, request], update_ops)
    loss, cross_entropy, top1, requested = tf.unstack(statistics.scalars)
    gradient_norm = tf.linalg.global_norm(averaged)

    # All workers see the same loss and gradients: they apply an update, or none does.
    is_finite = tf.math.is_finite(loss + gradient_norm)
    nonfinite = tf.cond(is_finite, lambda: tf.constant(-1), lambda: _find_nonfinite(local))
    global_step = tf1.train.get_or_create_global_step()
    pairs = list(zip(averaged, variables, strict=True))
    with tf.control_dependencies([is_finite, nonfinite]):
        train_op = tf.group(
            tf.cond(is_finite, lambda: optimizer.apply_gradients(pairs), tf.no_op),
            statistics.build_update(is_finite),
            loss_scale.build_update(is_finite),
            accumulator.build_reset(),
            global_step.assign_add(1).op,
        )
    broadcast_op = group.build_broadcast(tf1.global_variables())
    with tf.control_dependencies([broadcast_op]):
        begin_op = tf.group(statistics.build_begin(), accumulator.build_reset())
    return TrainGraph(
        train_op=train_op,
        metrics=StepMetrics(
            loss=loss,
            cross_entropy=cross_entropy,
            weight_decay_loss=losses.weight_decay,
            gradient_norm=gradient_norm,
            top1=top1,
            request=requested,
            is_applied=tf.cast(is_finite, tf.float32),
            loss_scale=loss_scale.value,
            nonfinite_gradient=nonfinite,
            data_wait_sec=wait_sec,
            gradients_ready_sec=gradients_ready_sec,
        ),
        accumulate_op=tf.group(accumulator.add_op, update_ops),
        accumulate_wait_sec=wait_sec,
        batches_per_update=batches,
        learning_rate=learning_rate,
        request=request,
        gradient_names=tuple(variable.op.name for variable in variables),
        global_step=global_step,
        stream=stream,
        broadcast_op=begin_op,
        histograms=build_histograms(config.telemetry, averaged, variables),
    )


def _build_timed_input(
    config: Config, group: Group, dataset: AnyDataset
) -> tuple[Stream, Batch, tf.Tensor]:
    """The stream, its batch, and how long the batch was waited for: float64 [], seconds."""
    began = _build_now(config)
    with tf.control_dependencies([began]):
        stream = dataset.build_train(group.worker, seed=config.run.seed)
    batch = stream.batch
    with tf.control_dependencies([batch.images]):
        data_ready = _build_now(config)
    with tf.control_dependencies([data_ready]):
        batch = batch._replace(images=tf.identity(batch.images))
    return stream, batch, data_ready - began


def _compute_gradients(
    optimizer: tf1.train.Optimizer, loss: tf.Tensor
) -> tuple[list[tf.Tensor], list[tf.Variable]]:
    """The trainable variables that the loss depends on, and its gradient by each."""
    pairs = optimizer.compute_gradients(loss, tf1.trainable_variables())
    found = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    return [gradient for gradient, _ in found], [variable for _, variable in found]


def _average_gradient(config: Config, group: Group, gradient: tf.Tensor, name: str) -> tf.Tensor:
    """The mean over all workers, float32, sent as --gradient_compression says."""
    compression = config.communication.gradient_compression
    sent = gradient if compression == "none" else tf.cast(gradient, compression)
    return tf.cast(group.average(sent, f"gradient/{name}"), tf.float32)


def _find_nonfinite(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """int32 []: the index of the first that is not finite throughout; -1 where all are."""
    bad = tf.stack([tf.reduce_any(~tf.math.is_finite(gradient)) for gradient in gradients])
    first = tf.argmax(tf.cast(bad, tf.int32), output_type=tf.int32)
    return tf.where(tf.reduce_any(bad), first, -1)


def _build_now(config: Config) -> tf.Tensor:
    """The time at which it runs: float64 [], seconds since 1970."""
    if not config.run.deterministic:
        return tf.timestamp()
    # TensorFlow refuses its own clock where it is to be deterministic.
    return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])


def build_evaluation_graph(config: Config, group: Group, dataset: AnyDataset) -> EvaluationGraph:
    """Adds the evaluation of a batch to the default graph."""
    stream = dataset.build_evaluation(group.worker)
    if stream.steps is None:
        raise ValueError("the stream of an evaluation must have an end")
    batch = stream.batch
    logits = build_logits(
        config.model,
        device.normalize(batch.images, config.data),
        num_classes=dataset.info.num_classes,
        is_training=False,
    )
    cross_entropy = build_cross_entropy(logits, tf.one_hot(batch.labels, logits.shape[-1]))
    right = [
        tf.cast(tf.nn.in_top_k(batch.labels, logits, min(k, logits.shape[-1])), tf.float32)
        for k in (1, 5)
    ]
    rows = tf.stack([tf.ones_like(cross_entropy), *right, cross_entropy])
    # Padding counts nothing, not even where its cross-entropy is not finite.
    counted = tf.where(batch.weights > 0, rows, tf.zeros_like(rows))
    totals = tf.reduce_sum(tf.cast(counted, tf.float64), axis=1)
    predictions = tf.argmax(logits, 1, output_type=tf.int32)
    answers = Answers(batch.labels, predictions, batch.weights)
    return EvaluationGraph(totals, answers, stream, stream.steps)
