"""Learning rates as functions of the step."""

import math
from collections.abc import Callable

from trainer.config import OptimizerConfig

Schedule = Callable[[int], float]

# Where lr_schedule=step multiplies the rate by 0.1: epochs 30, 60 and 80 of 90 (arXiv:1706.02677).
STEP_BOUNDARIES = (1 / 3, 2 / 3, 8 / 9)


def create_schedule(
    config: OptimizerConfig,
    *,
    global_batch_size: int,
    total_steps: int,
    steps_per_epoch: float,
) -> Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      config: the peak rate (for a global batch of 256), the warm-up and the schedule.
      global_batch_size: examples per update, over all workers (of one, with Adasum); the peak
        scales linearly with it.
      total_steps: number of updates in the run.
      steps_per_epoch: number of updates in one pass over the data; need not be whole.

    Returns:
      a function of the number of updates already made: 0 for the first. Warm-up is linear and ends
      with the peak: step k of w has (k + 1) / w of it; with a rate to begin with, step 0 has that
      rate, and step w the peak. After it, the rate follows from the share of the remaining steps
      that is done, or, of `step` and `exponential`, from the epoch.
    """
    peak = config.base_learning_rate * global_batch_size / 256
    # A run that is shorter than its warm-up would never reach the peak.
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 2)
    if config.lr_steps is None:
        drops = [
            (boundary * total_steps, 0.1**number)
            for number, boundary in enumerate(STEP_BOUNDARIES, start=1)
        ]
    else:
        # Rounded, as in `trainer.plan`: 1.1 epochs of 100 steps are 110.00000000000001.
        drops = [
            (round(epoch * steps_per_epoch, 6), factor)
            for epoch, factor in config.epochs_and_factors
        ]

    def after_warmup(share: float) -> float:
        if config.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if config.lr_schedule == "polynomial":
            return (1 - share) ** 2
        return 1.0

    def learning_rate(step: int) -> float:
        if step < warmup:
            start = config.warmup_learning_rate
            if start is None:
                return peak * (step + 1) / warmup
            return start + (peak - start) * step / warmup
        if config.lr_schedule == "step":
            return peak * ([1.0] + [factor for begin, factor in drops if step >= begin])[-1]
        if config.lr_schedule == "exponential":
            steps = config.lr_decay_epochs * steps_per_epoch
            periods = step / (round(steps, 6) or steps)
            return peak * config.lr_decay_factor ** math.floor(periods)
        return peak * after_warmup(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

    return learning_rate


def describe_warmup(config: OptimizerConfig, global_batch_size: int) -> tuple[str, ...]:
    """Returns a line where the rate falls while it warms up, which is nobody's intention.

    Args:
      config: the rates.
      global_batch_size: examples per update, as for `create_schedule`.
    """
    peak = config.base_learning_rate * global_batch_size / 256
    start = config.warmup_learning_rate
    if start is None or start <= peak:
        return ()
    return (
        f"the learning rate falls while it warms up: --warmup_learning_rate={start:g} is above the "
        f"peak of {peak:.4g}, which is --base_learning_rate x {global_batch_size} / 256",
    )


def describe_late_drops(
    config: OptimizerConfig, *, total_steps: int, steps_per_epoch: float
) -> tuple[str, ...]:
    """Returns a line where --lr_steps has epochs that the run never reaches.

    Args:
      config: the schedule.
      total_steps, steps_per_epoch: as for `create_schedule`.
    """
    if config.lr_steps is None:
        return ()
    last = (total_steps - 1) / steps_per_epoch
    late = [f"{epoch:g}" for epoch, _ in config.epochs_and_factors if epoch > last]
    if not late:
        return ()
    return (
        f"the learning rate does not change at epoch {', '.join(late)} of --lr_steps: the run ends "
        f"after {total_steps / steps_per_epoch:.4g} epochs",
    )
