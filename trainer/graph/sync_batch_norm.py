"""Batch normalization over the batches of all workers: --sync_batch_norm."""

import collections
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.distributed import URGENT, Group
from trainer.errors import ConfigError


class SyncBatchNorm:
    """Normalizes by the statistics of all workers' examples together.

    Each layer has one collective in the forward pass, of its channels' means and mean squares, and
    one in the backward pass, of two means that the gradient needs (arXiv:1502.03167, section 3).
    All workers have batches of the same size, so that a mean over workers is one over examples.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._calls: collections.Counter[str] = collections.Counter()

    def check(self, layers: int) -> None:
        """Checks that every layer of BN was built by this object.

        Args:
          layers: number of layers that use the batch's statistics.

        Raises:
          ConfigError: there are others, which know this worker's batch alone.
        """
        if len(self._calls) < layers:
            raise ConfigError(
                f"--sync_batch_norm: must find slim's fused BN in the network, but "
                f"{layers - len(self._calls)} of {layers} layers are of another kind"
            )

    def normalize(
        self, inputs: tf.Tensor, gamma: Any, beta: Any, *, epsilon: float, data_format: str = "NHWC"
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Adds what `tf.compat.v1.nn.fused_batch_norm` does in training, for the joined batch.

        Args:
          inputs: a map [batch, height, width, channels], or with the channels first.
          gamma: float32 [channels]: scale.
          beta: float32 [channels]: offset.
          epsilon: number that is added to the variance.
          data_format: NHWC or NCHW.

        Returns:
          the outputs, of the shape and type of `inputs`; the mean and the unbiased variance of the
          joined batch, float32 [channels] each.
        """
        scope = tf1.get_variable_scope().name
        self._calls[scope] += 1
        name = f"{scope}/{self._calls[scope]}"

        @tf.custom_gradient
        def build(*arguments: tf.Tensor) -> tuple[Any, Any]:
            layer = _Layer(self._group, name, epsilon, data_format)
            results = layer.build(*arguments)
            return results, lambda gradient, *_: layer.build_gradients(gradient)

        outputs, mean, variance = build(inputs, gamma, beta)
        return outputs, mean, variance


class _Layer:
    """One layer: its forward pass, and the gradients by what it was built of."""

    def __init__(self, group: Group, name: str, epsilon: float, data_format: str) -> None:
        self._group = group
        self._name = name
        self._epsilon = epsilon
        self._data_format = data_format
        self._axes = [0, 1, 2] if data_format == "NHWC" else [0, 2, 3]

    def build(
        self, inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Adds the forward pass, of the arguments and results of `SyncBatchNorm.normalize`.

        Args:
          inputs: a map [batch, height, width, channels], or with the channels first.
          gamma, beta: float32 [channels].

        Returns:
          the outputs, of the shape and type of `inputs`; the mean and the unbiased variance of the
          joined batch, float32 [channels] each.
        """
        own = tf.nn.moments(tf.cast(inputs, tf.float32), self._axes)
        # In float64: of channels far from 0, the mean square is nearly the square of the mean.
        mean, variance = (tf.cast(value, tf.float64) for value in own)
        sent = tf.concat([mean, variance + tf.square(mean)], 0)
        mean, square = tf.split(self._group.average(sent, f"{URGENT}batch_norm/{self._name}"), 2)
        variance = tf.cast(tf.maximum(square - tf.square(mean), 0.0), tf.float32)
        mean = tf.cast(mean, tf.float32)
        outputs, _, _ = tf1.nn.fused_batch_norm(
            inputs,
            gamma,
            beta,
            mean=mean,
            variance=variance,
            epsilon=self._epsilon,
            data_format=self._data_format,
            is_training=False,
        )
        self._inputs, self._gamma = inputs, gamma
        self._mean, self._scale = mean, tf.math.rsqrt(variance + self._epsilon)
        # Values of each channel in one worker's batch, and in all.
        here = tf.cast(tf.size(inputs) / tf.size(mean), tf.float32)
        self._count = here
        joined = here * self._group.worker.size
        return outputs, mean, variance * joined / tf.maximum(joined - 1, 1.0)

    def build_gradients(self, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the gradients by inputs, gamma and beta.

        Those by gamma and beta are of this worker's loss, as those of all other variables.
        """
        slope = tf.cast(gradient, tf.float32)
        deviation = tf.cast(self._inputs, tf.float32) - self._along(self._mean)
        normalized = deviation * self._along(self._scale)
        by_beta = tf.reduce_mean(slope, self._axes)
        by_gamma = tf.reduce_mean(slope * normalized, self._axes)
        sent = tf.concat([by_beta, by_gamma], 0)
        joined = self._group.average(sent, f"{URGENT}batch_norm_gradient/{self._name}")
        mean_slope, mean_product = tf.split(joined, 2)
        rest = slope - self._along(mean_slope) - normalized * self._along(mean_product)
        by_inputs = tf.cast(self._along(self._gamma * self._scale) * rest, self._inputs.dtype)
        return by_inputs, by_gamma * self._count, by_beta * self._count

    def _along(self, values: tf.Tensor) -> tf.Tensor:
        """Returns values of channels in a shape that fits a map."""
        if self._data_format == "NHWC":
            return values
        return tf.reshape(values, [1, -1, 1, 1])
