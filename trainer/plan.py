"""The plan of a run: its length, and what happens at which step. Pure Python."""

import dataclasses
import math
from collections.abc import Sequence

from trainer.config import RunConfig

DEFAULT_EPOCHS = 90.0
SYNTHETIC_STEPS = 100  # Enough to time them.
# What has to be between the last two evaluations: a share of an interval, and more than so many
# steps, or than half an interval where that is less.
_LEAST_APART, _STEPS_APART = 0.1, 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run. Steps count from 1; a step is an update.

    Attributes:
      total_steps: number of steps of the run.
      steps_per_epoch: number of steps in one pass over the training data; need not be whole.
      global_batch_size: number of examples per step, over all workers.
      log_every: steps between two reports.
      checkpoint_every: steps between two checkpoints; 0: one at the end.
      evaluate_every: steps between two evaluations, need not be whole; 0: one at the end; None:
        there is nothing to evaluate on.
      checkpoint_every_minutes: minutes after which a checkpoint follows the next step, too; 0:
        none does.
    """

    total_steps: int
    steps_per_epoch: float
    global_batch_size: int
    log_every: int
    checkpoint_every: int
    evaluate_every: float | None
    checkpoint_every_minutes: float = 0.0

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.total_steps or (every > 0 and step % every == 0)

    def saves_at(self, step: int) -> bool:
        """Returns whether a checkpoint follows `step`."""
        return self._is_due(step, self.checkpoint_every)

    def evaluates_at(self, step: int) -> bool:
        """Returns whether an evaluation follows `step`, with which an interval ends.

        Intervals count from the run's start, as epochs do, so that none is longer or shorter by
        what steps leave of it. No evaluation comes shortly before the last one.
        """
        if not self.evaluate_every or step == self.total_steps:
            return self.evaluate_every is not None and step == self.total_steps
        # Rounded: 1.1 epochs of 100 steps are 110, though 1.1 * 100 is a little more.
        before, after = (
            math.floor(round(count / self.evaluate_every, 9)) for count in (step - 1, step)
        )
        left = self.total_steps - step
        is_apart = left > min(_STEPS_APART, self.evaluate_every / 2)
        return after > before and is_apart and left >= _LEAST_APART * self.evaluate_every

    def reports_at(self, step: int) -> bool:
        """Returns whether the numbers of the latest steps are gathered and written after `step`."""
        return self._is_due(step, self.log_every) or self.saves_at(step) or self.evaluates_at(step)

    def value_at(self, step: int, values: Sequence[tuple[float, int]]) -> int:
        """Returns the value for the step that follows `step`.

        Args:
          step: number of steps done.
          values: pairs of an epoch and the value from it on; the first epoch is 0.
        """
        # Rounded: 1.1 epochs of 100 steps are 110, though 1.1 * 100 is a little more.
        begun = [value for epoch, value in values if step >= round(epoch * self.steps_per_epoch, 6)]
        return begun[-1]

    def epoch_at(self, step: int) -> float:
        """Returns the number of passes over the training data after `step`."""
        return step / self.steps_per_epoch


def create_plan(
    config: RunConfig,
    *,
    global_batch_size: int,
    train_examples: int,
    validation_examples: int,
    is_synthetic: bool = False,
) -> Plan:
    """Creates the plan of a run.

    Args:
      config: length of the run, and what is due when.
      global_batch_size: number of examples of a step, over all workers.
      train_examples, validation_examples: number of examples of each split.
      is_synthetic: whether the examples mean nothing, so that a run ends when it has been timed.
    """
    steps_per_epoch = train_examples / global_batch_size
    if config.steps is not None:
        total_steps = config.steps
    elif is_synthetic and config.epochs is None:
        total_steps = SYNTHETIC_STEPS
    else:
        epochs = DEFAULT_EPOCHS if config.epochs is None else config.epochs
        # Rounded first: 1.1 epochs of 100 steps are 110, though 1.1 * 100 is a little more.
        total_steps = max(1, math.ceil(round(epochs * steps_per_epoch, 6)))
    evaluate_every = None
    if validation_examples:
        evaluate_every = 0.0
        if config.eval_every_epochs > 0:
            evaluate_every = max(1.0, config.eval_every_epochs * steps_per_epoch)
    return Plan(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        global_batch_size=global_batch_size,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=evaluate_every,
        checkpoint_every_minutes=config.checkpoint_every_minutes,
    )
