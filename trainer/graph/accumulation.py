"""Accumulation of gradients: several batches make one update, with one all-reduce."""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.graph.initial_values import create_zeros


class Accumulator:
    """Means of tensors over the batches of an update.

    Every batch but the last of an update runs `add_op`; with the last one the means are complete.
    Checkpoints don't have the sums: they are written between updates, when the sums are 0.

    Attributes:
      means: means over all batches of an update, one for each tensor, of its shape and type.
      add_op: operation that adds this batch's tensors to the sums. It has no collectives but those
        that the tensors are made by, of --sync_batch_norm.
    """

    def __init__(self, tensors: Sequence[tf.Tensor], batches: int) -> None:
        """Adds the sums to the default graph; none where an update is one batch."""
        if batches == 1:
            self._sums: list[tf.Variable] = []
            self.means, self.add_op = list(tensors), tf.no_op()
            return
        # In no collection, so that nothing saves, broadcasts or initializes them.
        self._sums = [
            tf1.Variable(
                tf.zeros(tensor.shape, tensor.dtype),
                trainable=False,
                collections=[],
                use_resource=True,
            )
            for tensor in tensors
        ]
        pairs = list(zip(self._sums, tensors, strict=True))
        self.means = [(total.read_value() + tensor) / batches for total, tensor in pairs]
        self.add_op = tf.group(
            *(total.assign_add(tensor, read_value=False) for total, tensor in pairs)
        )

    def build_reset(self) -> tf.Operation:
        """Adds what sets the sums to 0: before a run's first batch, at the end of each update."""
        return tf.group(
            *(
                total.assign(create_zeros(total.shape, total.dtype), read_value=False)
                for total in self._sums
            )
        )
