"""The network of --model, in the precision of --precision."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from models.slim_compat import BatchNormChanges, batch_norm_changed, slim
from trainer.config import Config, ModelConfig
from trainer.cpu_kernels import gradients
from trainer.errors import ConfigError
from trainer.graph import images as preprocessing
from trainer.graph import precision


def find_network(
    config: ModelConfig, image_size: int, *, flag: str = "image_size"
) -> models.Network:
    """Returns the network that --model names.

    Args:
      config: the network.
      image_size: height and width of its images, pixels.
      flag: flag that gives them.

    Raises:
      ConfigError: there is no such network, or images of `image_size` pixels are too small for it.
    """
    try:
        network = models.get(config.model)
    except models.UnknownModelError as error:
        raise ConfigError(f"--model: {error}") from None
    try:
        models.check_image_size(network, image_size)
    except ValueError as error:
        raise ConfigError(f"--{flag}: {error}") from None
    return network


def build_logits(
    config: ModelConfig,
    images: tf.Tensor,
    *,
    num_classes: int,
    is_training: bool,
    batch_norm: BatchNormChanges | None = None,
    averages: Callable[..., Any] | None = None,
) -> tf.Tensor:
    """Adds the network; all calls within a graph share its variables.

    Args:
      config: the network, its arg scope and its precision.
      images: float32 [batch, size, size, 3], normalized.
      num_classes: number of logits for each image.
      is_training: whether BN uses the batch's statistics.
      batch_norm: what is otherwise in BN; None: nothing.
      averages: variable getter that gives a variable's average in its place; None: it does not.

    Returns:
      logits: float32 [batch, num_classes].

    Raises:
      ConfigError: there is no such network, or its logits have another shape.
    """
    network = find_network(config, images.shape[1])
    dtype = precision.compute_dtype(config.precision)
    # The arg scope's own weight decay would be computed from the cast copies of the variables, in
    # low precision: `losses` has it instead.
    arg_scope = network.arg_scope_fn(
        weight_decay=0.0,
        batch_norm_decay=config.batch_norm_decay,
        batch_norm_epsilon=config.batch_norm_epsilon,
        is_training=is_training,
    )
    getter = precision.create_variable_getter(dtype)
    if averages is not None:
        getter = _chain(getter, averages)
    # Gradients of marked operations are marked, too.
    marks = config.xla and config.xla_scope == "network"
    with (
        tf.xla.experimental.jit_scope() if marks else contextlib.nullcontext(),
        batch_norm_changed(batch_norm) if batch_norm else contextlib.nullcontext(),
        tf1.variable_scope("", custom_getter=getter, reuse=tf1.AUTO_REUSE),
        slim.arg_scope(arg_scope),
        gradients.overridden(),
    ):
        logits, _ = network.fn(
            tf.cast(images, dtype), num_classes=num_classes, is_training=is_training
        )
    check_logits(config.model, logits, num_classes)
    return tf.cast(logits, tf.float32)


def check_logits(name: str, logits: tf.Tensor, num_classes: int) -> None:
    """Raises ConfigError unless the logits of the network of some name are one for each class."""
    if not logits.shape.is_compatible_with([None, num_classes]):
        raise ConfigError(
            f"--model: must return logits of shape [batch, {num_classes}], one for each class, got "
            f"{name}, whose shape is {logits.shape}"
        )


def _chain(outer: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the variable getter that asks `outer`, which asks `inner`."""
    return lambda getter, *args, **kwargs: outer(functools.partial(inner, getter), *args, **kwargs)


def classify(
    config: Config,
    pixels: tf.Tensor,
    *,
    num_classes: int,
    is_training: bool = False,
    batch_norm: BatchNormChanges | None = None,
    averages: Callable[..., Any] | None = None,
) -> tf.Tensor:
    """Adds the preprocessing of --preprocessing and the network.

    Args:
      config: the preprocessing, and what `build_logits` needs.
      pixels: uint8 [batch, size, size, 3].
      num_classes: number of logits for each image.
      is_training: whether BN uses the batch's statistics.
      batch_norm, averages: see `build_logits`.

    Returns:
      logits: float32 [batch, num_classes].
    """
    normalized = preprocessing.normalize(pixels, config.data)
    return build_logits(
        config.model,
        normalized,
        num_classes=num_classes,
        is_training=is_training,
        batch_norm=batch_norm,
        averages=averages,
    )
