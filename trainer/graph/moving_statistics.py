"""BN's moving statistics: the same on all workers after every step, and always finite."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.distributed import URGENT, Group
from trainer.graph import scopes

# What the name of a variable ends with that every layer of BN has.
VARIANCE = "/moving_variance"
# Share of their initial values that may be left in the statistics at the end of a run.
_MOST_LEFT = 0.01


def are_among(variables: Sequence[str]) -> bool:
    """Returns whether there are moving statistics among variables, by their names."""
    return any(name.endswith(VARIANCE) for name in variables)


def describe_start(decay: float, steps: int, variables: Sequence[str]) -> tuple[str, ...]:
    """Returns a line where a run ends before its statistics have left their initial values behind.

    They begin at mean 0 and variance 1, of which decay ** n is left after n steps. An evaluation
    with such statistics may be at chance however well the network has learned.

    Args:
      decay: the value of --batch_norm_decay.
      steps: number of steps of the run.
      variables: names of the network's variables.
    """
    left = decay**steps
    if not are_among(variables) or left <= _MOST_LEFT:
        return ()
    fitting = math.floor(1000 * _MOST_LEFT ** (1 / steps)) / 1000
    return (
        f"--batch_norm_decay={decay:g} leaves {left:.0%} of BN's moving statistics at their "
        f"initial values after {steps} steps, and evaluations far from right: give at most "
        f"{fitting:g}",
    )


class Statistics:
    """Averages BN's moving statistics, and some scalars, over the workers.

    Each worker's statistics are of its own examples only. Averaged at every step, in one small
    collective, they are the same on all workers, as all variables are: a checkpoint or an
    evaluation has nothing to gather.

    Attributes:
      scalars: float32 [n]: means of the scalars over all workers.
    """

    def __init__(
        self,
        group: Group,
        scalars: Sequence[tf.Tensor],
        moving: Sequence[tf.Variable],
        after: tf.Operation,
    ) -> None:
        """Adds the collective to the default graph.

        Args:
          group: the workers.
          scalars: float32 [] each.
          moving: the statistics that steps change.
          after: operation that ends once UPDATE_OPS have updated this worker's statistics and all
            else that the step averages is computed: this collective is the step's last one, and
            its name makes Horovod not wait for more.
        """
        self._group = group
        self._moving = moving
        with tf.name_scope(scopes.STATISTICS):
            with tf.control_dependencies([after]):
                sent = tf.concat([tf.stack(scalars), self._read()], 0)
                mean = group.average(sent, f"{URGENT}statistics")
            self.scalars, self._mean = mean[: len(scalars)], mean[len(scalars) :]
            # The statistics after the last good step, to be restored after a bad one.
            self._kept = tf1.Variable(
                tf.zeros(self._mean.shape), trainable=False, collections=[], use_resource=True
            )

    def build_begin(self) -> tf.Operation:
        """Adds what is to be run before a run's first step, when the statistics have values."""
        return self._kept.assign(self._read(), read_value=False)

    def _read(self) -> tf.Tensor:
        """Returns all statistics, one after another: float32 [n]."""
        return tf.concat([tf.zeros([0]), *(_shaped(v, [-1]) for v in self._moving)], 0)

    def _assign(self, values: tf.Tensor) -> tf.Operation:
        sizes = [variable.shape.num_elements() for variable in self._moving]
        parts = tf.split(values, sizes) if sizes else []
        pairs = zip(self._moving, parts, strict=True)
        return tf.group(
            *(
                variable.assign(_shaped(part, variable.shape), read_value=False)
                for variable, part in pairs
            )
        )

    def build_update(self, is_finite: tf.Tensor) -> tf.Operation:
        """Adds what assigns the means, or, where the step is not finite, the old values."""
        values = tf.cond(is_finite, lambda: self._mean, self._kept.read_value)
        with tf.control_dependencies([values]):
            kept = self._kept.assign(values, read_value=False)
        if self._group.worker.size > 1:
            return tf.group(kept, self._assign(values))
        # The only worker has its means already.
        restored = tf.cond(is_finite, tf.no_op, lambda: self._assign(values))
        return tf.group(kept, restored)


def _shaped(value: tf.Tensor | tf.Variable, shape: Any) -> tf.Tensor:
    """Returns a value in another shape; that of vectors, as BN's statistics are, is kept."""
    tensor = tf.convert_to_tensor(value)
    return tensor if tensor.shape.rank == 1 == len(shape) else tf.reshape(tensor, shape)
