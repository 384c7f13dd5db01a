"""The reduction of gradients over all workers: their average, or Adasum.

Horovod averages float32 and float16. What it does not do is done here in two collectives: each
worker gets its part of every worker's gradients, reduces these rows, and sends the result to all.
That moves 2 (n - 1) / n times the bytes per worker, as a ring does (Thakur et al., "Optimization of
Collective Communication Operations in MPICH", 2005: reduce-scatter by pairwise exchange, then
all-gather). Rows are added up in the order of ranks, whatever is sent together.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.config import Config
from trainer.config.update import BUCKET_MB
from trainer.distributed import URGENT, Group
from trainer.errors import ConfigError
from trainer.graph import scopes

# Sums over all workers of values that each has for its part of the gradients.
SumOverParts = Callable[[tf.Tensor, int], tf.Tensor]


def reduce_gradients(
    config: Config, group: Group, gradients: Sequence[tf.Tensor], names: Sequence[str]
) -> list[tf.Tensor]:
    """Reduces gradients over all workers, as --gradient_reduction and --gradient_compression say.

    Args:
      config: the reduction, and the type in which gradients travel.
      group: the workers.
      gradients: float32 tensors of known shapes.
      names: names of their variables.

    Returns:
      the reduced gradients, float32, the same on every worker.

    Raises:
      ConfigError: Adasum cannot be done with this number of workers.
    """
    communication = config.communication
    is_adasum = communication.gradient_reduction == "adasum"
    size = group.worker.size
    if is_adasum and size & (size - 1):
        raise ConfigError(
            "--gradient_reduction=adasum: must be given to a number of workers that is a power of "
            f"two, got {size}"
        )
    with tf.name_scope(scopes.GRADIENTS):
        if not is_adasum and communication.gradient_compression != "bfloat16":
            return [
                _average(communication.gradient_compression, group, gradient, name)
                for gradient, name in zip(gradients, names, strict=True)
            ]
        threshold = communication.fusion_threshold_mb
        # In buckets, the first gradients travel while others are computed.
        most_bytes = 2**20 * (BUCKET_MB if threshold is None else threshold)
        last_first = gradients[::-1]  # Backpropagation comes to the last variables first.
        sizes = [4 * gradient.shape.num_elements() for gradient in last_first]
        reduced: list[tf.Tensor] = []
        for number, (begin, end) in enumerate(fill_buckets(sizes, most_bytes)):
            bucket = _Bucket(config, group, last_first[begin:end], f"gradients/{number}")
            reduced += bucket.reduce()
        return reduced[::-1]


def fill_buckets(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Divides a sequence into neighbours that together have at most some size, or are alone.

    Returns:
      (begin, end) of each bucket.
    """
    ends: list[int] = []
    filled = 0
    for number, size in enumerate(sizes):
        if number and filled + size > most:
            ends.append(number)
            filled = 0
        filled += size
    ends.append(len(sizes))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _average(compression: str, group: Group, gradient: tf.Tensor, name: str) -> tf.Tensor:
    """Averages a gradient by one all-reduce of Horovod, which fuses it with others."""
    is_sent = group.worker.size > 1
    sent = tf.cast(gradient, compression) if is_sent and compression != "none" else gradient
    return tf.cast(group.average(sent, f"gradient/{name}"), tf.float32)


class _Bucket:
    """Gradients that are reduced together.

    Each gradient is cut into as many parts as there are workers, with zeros behind it; part k of
    each goes to worker k. So the graph is the same on every worker.
    """

    def __init__(
        self, config: Config, group: Group, gradients: Sequence[tf.Tensor], name: str
    ) -> None:
        compression = config.communication.gradient_compression
        self._type = tf.float32 if compression == "none" else tf.as_dtype(compression)
        self._is_adasum = config.communication.gradient_reduction == "adasum"
        self._group = group
        self._gradients = gradients
        self._name = f"{URGENT}{name}"
        workers = group.worker.size
        self._widths = [-(-each.shape.num_elements() // workers) for each in gradients]

    def reduce(self) -> list[tf.Tensor]:
        """Adds the collectives; returns the reduced gradients, float32."""
        workers = self._group.worker.size
        if workers == 1:
            return list(self._gradients)
        rows = tf.concat([self._cut(each) for each in self._gradients], axis=1)
        mine = self._receive(
            self._group.all_to_all(self._send(rows), f"{self._name}/parts"), sum(self._widths)
        )
        if self._is_adasum:
            reduced = adasum(mine, self._widths, self._sum_over_parts)
        else:
            reduced = tf.add_n(tf.unstack(mine)) / workers
        everything = self._receive(
            self._group.all_gather(self._send(reduced[tf.newaxis])[0], f"{self._name}/whole"),
            sum(self._widths),
        )
        parts = tf.split(everything, self._widths, axis=1)
        return [
            tf.reshape(tf.reshape(part, [-1])[: each.shape.num_elements()], each.shape)
            for part, each in zip(parts, self._gradients, strict=True)
        ]

    def _cut(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns a gradient as a row for each worker."""
        workers = self._group.worker.size
        missing = -gradient.shape.num_elements() % workers
        return tf.reshape(tf.pad(tf.reshape(gradient, [-1]), [[0, missing]]), [workers, -1])

    def _send(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns float32 rows in the type in which they travel; bfloat16 two to an int32.

        Horovod knows no bfloat16.
        """
        sent = tf.cast(rows, self._type)
        if self._type != tf.bfloat16:
            return sent
        if rows.shape[1] % 2:
            sent = tf.pad(sent, [[0, 0], [0, 1]])
        return tf.bitcast(tf.reshape(sent, [rows.shape[0], -1, 2]), tf.int32)

    def _receive(self, rows: tf.Tensor, width: int) -> tf.Tensor:
        """Returns rows that have travelled, as float32 [workers, width]."""
        if self._type == tf.bfloat16:
            rows = tf.bitcast(rows, tf.bfloat16)
        whole = tf.cast(tf.reshape(rows, [self._group.worker.size, -1]), tf.float32)
        return tf.ensure_shape(whole[:, :width], [self._group.worker.size, width])

    def _sum_over_parts(self, values: tf.Tensor, level: int) -> tf.Tensor:
        average = self._group.average(values, f"{self._name}/products/{level}")
        return average * self._group.worker.size


def adasum(rows: tf.Tensor, widths: Sequence[int], sum_over_parts: SumOverParts) -> tf.Tensor:
    """Returns the Adasum of the workers' gradients, in this worker's part of them.

    Two gradients a and b of a layer become (1 - a.b / (2 a.a)) a + (1 - a.b / (2 b.b)) b: their sum
    where they are orthogonal, their average where they are equal; then pairs of pairs, and so on
    (Maleki et al., "Scaling Distributed Training with Adaptive Summation", arXiv:2006.02924,
    equation 6 and section 3.3).

    Args:
      rows: float32 [workers, width]: every worker's gradients; a power of two of them.
      widths: of each layer: they add up to `width`.
      sum_over_parts: adds up a tensor over all workers' parts; its second argument is the level.
    """
    level = 0
    while rows.shape[0] > 1:
        layers = tf.split(rows, widths, axis=1)
        pairs = [tf.reshape(layer, [rows.shape[0] // 2, 2, -1]) for layer in layers]
        products = tf.stack([tf.linalg.matmul(pair, pair, transpose_b=True) for pair in pairs])
        products = sum_over_parts(products, level)  # [layers, pairs, 2, 2]
        squares = tf.linalg.diag_part(products)  # [layers, pairs, 2]
        # A gradient of zeros adds nothing, whatever its factor is.
        factors = 1 - tf.math.divide_no_nan(products[..., 0, 1, tf.newaxis], 2 * squares)
        rows = tf.concat(
            [
                tf.reduce_sum(pair * factor[..., tf.newaxis], axis=1)
                for pair, factor in zip(pairs, tf.unstack(factors), strict=True)
            ],
            axis=1,
        )
        level += 1
    return rows[0]
