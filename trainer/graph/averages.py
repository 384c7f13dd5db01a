"""Exponential moving averages of a network's variables: --ema_decay."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import OptimizerConfig
from trainer.graph import scopes

# What slim, and tf.train.ExponentialMovingAverage, put behind a variable's name.
SUFFIX = "/ExponentialMovingAverage"


class Averages:
    """Averages of variables, which follow them at every update.

    They are what slim's train_image_classifier keeps with --moving_average_decay:
    average <- d * average + (1 - d) * variable, with d = min(decay, (1 + n) / (10 + n)) at the
    update after n others, so that the first ones do not weigh long. They begin as their variables.
    Workers need not tell each other: equal variables have equal averages.
    """

    def __init__(self, decay: float, variables: Sequence[tf.Variable]) -> None:
        """Adds the averages to the default graph."""
        self._decay = decay
        self._pairs = [(variable, _create(variable)) for variable in variables]

    def build_update(
        self, step: tf.Variable, is_applied: tf.Tensor, after: Sequence[tf.Operation]
    ) -> tf.Operation:
        """Adds the operation that follows the variables' new values.

        Args:
          step: int64 []: number of updates before this one.
          is_applied: bool []: whether this one changes the variables; else the averages stay.
          after: operations that change the variables.
        """
        with tf.control_dependencies(after):
            number = tf.cast(step.read_value(), tf.float32)
            decay = tf.minimum(self._decay, (1 + number) / (10 + number))
            share = tf.where(is_applied, 1 - decay, 0.0)
            return tf.group(
                *(
                    average.assign_sub(
                        share * (average.read_value() - variable.read_value()), read_value=False
                    )
                    for variable, average in self._pairs
                )
            )

    def getter(self) -> Callable[..., Any]:
        """Returns a variable getter that gives the averages in place of their variables."""
        of = {variable.op.name: average for variable, average in self._pairs}

        def get_variable(getter: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            variable = getter(*args, **kwargs)
            return of.get(variable.op.name, variable)

        return get_variable


def create_averages(config: OptimizerConfig, variables: Sequence[tf.Variable]) -> Averages | None:
    """Creates the averages of --ema_decay; None where there are to be none."""
    return None if config.ema_decay is None else Averages(config.ema_decay, variables)


def _create(variable: tf.Variable) -> tf.Variable:
    # A tensor of its own, since values are fed to initializers one by one.
    with tf.name_scope(scopes.START):
        value = tf.identity(variable.initial_value)
    return tf1.Variable(
        value, trainable=False, name=f"{variable.op.name}{SUFFIX}", dtype=tf.float32
    )
