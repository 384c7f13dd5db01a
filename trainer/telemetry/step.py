"""The numbers of one training step, as one worker measured them."""

import math
import time
from typing import NamedTuple

from trainer.graph.train_step import StepMetrics


class Step(NamedTuple):
    """One step, as one worker saw it.

    Attributes:
      number: number of the step, from 1.
      duration_sec: time from the end of the step before to the end of this one, s.
      own_sec: time from the end of the step before until this worker began to wait for the others.
      learning_rate: learning rate of the update.
      metrics: results of the graph, as Python numbers.
    """

    number: int
    duration_sec: float
    own_sec: float
    learning_rate: float
    metrics: StepMetrics

    @property
    def is_lost(self) -> bool:
        """Returns whether the step was not applied, and a smaller loss scale is no remedy."""
        is_overflow = math.isfinite(self.metrics.loss) and self.metrics.loss_scale > 1
        return not self.metrics.is_applied and not is_overflow


def measure_step(
    number: int, duration_sec: float, learning_rate: float, metrics: StepMetrics
) -> Step:
    """Returns the numbers of a step that has just ended; it reads the clock.

    Args:
      number: number of the step, from 1.
      duration_sec: time since the end of the step before, s.
      learning_rate: learning rate of the update.
      metrics: results of the graph, as Python numbers.
    """
    waited_sec = max(0.0, time.time() - metrics.gradients_ready_sec)
    return Step(
        number=number,
        duration_sec=duration_sec,
        own_sec=max(0.0, duration_sec - waited_sec),
        learning_rate=learning_rate,
        metrics=metrics,
    )
