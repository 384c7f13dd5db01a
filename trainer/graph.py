"""The training step and the evaluation of one batch, as graphs."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
      data_wait_sec: how long the step waited for its input.
      gradients_ready_sec: when this worker's gradients were ready, since 1970.
    """

    loss: tf.Tensor
    cross_entropy: tf.Tensor
    weight_decay_loss: tf.Tensor
    gradient_norm: tf.Tensor
    top1: tf.Tensor
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
      train_op: updates variables, optimizer slots, BN's moving statistics and `global_step`.
      metrics: of the step, before its update.
      learning_rate: float32 [], to be fed.
      global_step: int64 [], updates made.
      stream: the input.
      broadcast_op: gives every worker rank 0's variables.
    """

    train_op: tf.Operation
    metrics: StepMetrics
    learning_rate: tf.Tensor
    global_step: tf.Variable
    stream: Stream
    broadcast_op: tf.Operation


class EvaluationGraph(NamedTuple):
    """The evaluation of one batch.

    Attributes:
      totals: float64 [4]: examples, right at first, right among the first 5, summed cross-entropy.
      stream: the input.
      steps: batches, the same number on every worker.
    """

    totals: tf.Tensor
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
    began = _build_now(config)
    with tf.control_dependencies([began]):
        stream = dataset.build_train(group.worker, seed=config.run.seed)
    batch = stream.batch
    with tf.control_dependencies([batch.images]):
        data_ready = _build_now(config)
    with tf.control_dependencies([data_ready]):
        batch = batch._replace(images=tf.identity(batch.images))
    logits = build_logits(
        config.model,
        device.network_input(batch, config.data),
        num_classes=dataset.info.num_classes,
        is_training=True,
    )
    losses = build_losses(config, logits, batch)

    learning_rate = tf1.placeholder(tf.float32, [], name="learning_rate")
    optimizer = optimizers.create_optimizer(config.optimizer, learning_rate)
    pairs = optimizer.compute_gradients(losses.total, tf1.trainable_variables())
    local = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    with tf.control_dependencies([gradient for gradient, _ in local]):
        gradients_ready = _build_now(config)
    averaged = [
        (group.average(gradient, f"gradient/{variable.op.name}"), variable)
        for gradient, variable in local
    ]
    right = tf.equal(tf.argmax(logits, 1, output_type=batch.labels.dtype), batch.labels)
    top1 = tf.reduce_mean(tf.cast(right, tf.float32))
    moving_op, means = _build_synchronization(group, [losses.total, losses.cross_entropy, top1])
    global_step = tf1.train.get_or_create_global_step()
    # The loss reads the variables: nothing is updated before it has.
    with tf.control_dependencies([losses.total, moving_op]):
        train_op = optimizer.apply_gradients(averaged, global_step)
    return TrainGraph(
        train_op=train_op,
        metrics=StepMetrics(
            loss=means[0],
            cross_entropy=means[1],
            weight_decay_loss=losses.weight_decay,
            gradient_norm=tf.linalg.global_norm([gradient for gradient, _ in averaged]),
            top1=means[2],
            data_wait_sec=data_ready - began,
            gradients_ready_sec=gradients_ready,
        ),
        learning_rate=learning_rate,
        global_step=global_step,
        stream=stream,
        broadcast_op=group.build_broadcast(tf1.global_variables()),
    )


def _build_now(config: Config) -> tf.Tensor:
    """The time at which it runs: float64 [], seconds since 1970."""
    if not config.run.deterministic:
        return tf.timestamp()
    # TensorFlow refuses its own clock where it is to be deterministic.
    return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])


def _build_synchronization(
    group: Group, scalars: Sequence[tf.Tensor]
) -> tuple[tf.Operation, tf.Tensor]:
    """Runs UPDATE_OPS, then averages BN's moving statistics, and some scalars, over the workers.

    Each worker's statistics see its own examples only. Averaged at every step, they are the same
    everywhere, as all variables are, and whoever saves or evaluates has nothing to gather. It is
    one small collective, which runs during the backward pass.

    Returns:
      an operation after which the moving statistics are up to date, and the mean of each scalar:
      float32 [len(scalars)].
    """
    updates = tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)
    trainable = {variable.ref() for variable in tf1.trainable_variables()}
    moving = [v for v in tf1.get_collection("model_variables") if v.ref() not in trainable]
    with tf.control_dependencies(updates):
        parts = [tf.stack(scalars)]
        parts += [tf.reshape(tf.identity(variable.read_value()), [-1]) for variable in moving]
    mean = group.average(tf.concat(parts, 0), "statistics")
    sizes = [len(scalars)] + [variable.shape.num_elements() for variable in moving]
    means, *values = tf.split(mean, sizes)
    if group.worker.size == 1:
        return tf.group(*updates), means
    assignments = [
        tf1.assign(variable, tf.reshape(value, variable.shape))
        for variable, value in zip(moving, values, strict=True)
    ]
    return tf.group(*assignments), means


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
    return EvaluationGraph(totals, stream, stream.steps)
