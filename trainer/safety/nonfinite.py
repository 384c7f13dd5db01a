"""Decides what follows a step whose loss or gradient is not finite; its update was not applied."""

import enum

from trainer.distributed import Group
from trainer.graph.train_step import StepMetrics, TrainGraph

# A run that skips more than this makes no progress.
MAX_SKIPPED_IN_A_ROW = 100


class Decision(enum.Enum):
    """The decision about what follows a step whose update was not applied."""

    GO_ON = enum.auto()
    STOP = enum.auto()
    ROLL_BACK = enum.auto()


def describe(group: Group, train: TrainGraph, step: int, metrics: StepMetrics) -> str:
    """Names the step, the first worker with a bad gradient, and its first variable. A collective.

    Args:
      group: the workers.
      train: the training graph, which knows the names of the variables.
      step: number of the step.
      metrics: metrics of the step.
    """
    of_workers = group.gather(int(metrics.nonfinite_gradient))
    text = f"step {step}: the loss is {metrics.loss:g}, the gradient's norm "
    text += f"{metrics.gradient_norm:g}"
    rank = next((rank for rank, index in enumerate(of_workers) if index >= 0), None)
    if rank is None:
        return f"{text}: the norm of each worker's own gradient is finite, their mean's is not"
    name = train.gradient_names[of_workers[rank]]
    return (
        f"{text}; the first gradient whose norm is not finite is that of {name}, on worker {rank}"
    )


class Policy:
    """The policy of --on_nonfinite: the same decisions on all workers, which see the same steps.

    Attributes:
      skipped: number of steps that were left out so far.
    """

    def __init__(self, name: str) -> None:
        """Creates the policy.

        Args:
          name: value of the flag: stop, skip or rollback.
        """
        self._name = name
        self._has_rolled_back = False
        self._last_skipped = 0
        self._in_a_row = 0
        self.skipped = 0

    def decide(self, step: int) -> Decision:
        """Decides what to do after `step`, whose update was not applied."""
        if self._name == "rollback" and not self._has_rolled_back:
            self._has_rolled_back = True
            return Decision.ROLL_BACK
        if self._name != "skip":
            return Decision.STOP
        self._in_a_row = self._in_a_row + 1 if self._last_skipped == step - 1 else 1
        self._last_skipped = step
        self.skipped += 1
        return Decision.STOP if self._in_a_row > MAX_SKIPPED_IN_A_ROW else Decision.GO_ON
