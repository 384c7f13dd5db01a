"""The result of a training run, and its lines at the start and at the end."""

import math
from typing import Any

from trainer import timing
from trainer.config import Config
from trainer.distributed import Group
from trainer.inputs import synthetic
from trainer.inputs.dataset import DatasetInfo
from trainer.plan import Plan
from trainer.run.evaluation import Evaluation
from trainer.telemetry.step import Step


class RunTimes:
    """The times of a run's steps, and its last loss.

    A run has several parts where its loop begins anew: with images of another size, or after it has
    gone back to a checkpoint. Each has a warm-up of its own.

    Attributes:
      final_loss: loss of the last step; None before the first.
      allreduce_sec: duration of averaging the gradients alone, as measured before the first part;
        None where that was not measured.
    """

    def __init__(self) -> None:
        self.final_loss: float | None = None
        self.allreduce_sec: float | None = None
        self._parts: list[list[tuple[float, float]]] = []

    @property
    def has_begun(self) -> bool:
        """Returns whether a part has begun."""
        return bool(self._parts)

    def begin_part(self) -> None:
        """Begins a part: the next steps warm up."""
        self._parts.append([])

    def add(self, step: Step) -> None:
        """Adds a step of the part that was begun last."""
        self._parts[-1].append((step.duration_sec, step.metrics.data_wait_sec))
        self.final_loss = step.metrics.loss

    @property
    def warmup_steps(self) -> int:
        """The number of steps that warm up."""
        return sum(timing.warmup_steps(len(part)) for part in self._parts)

    @property
    def timed(self) -> list[tuple[float, float]]:
        """The other steps: from the end of the step before to its own end, s; wait for input, s."""
        return [times for part in self._parts for times in part[timing.warmup_steps(len(part)) :]]


def summarize(
    group: Group, plan: Plan, steps: int, times: RunTimes, evaluation: Evaluation | None
) -> dict[str, Any]:
    """Returns the result of the run, for --result_json. Its times leave out the warm-up's steps."""
    result: dict[str, Any] = {
        "steps": steps,
        "epochs": plan.epoch_at(steps),
        "workers": group.worker.size,
        "global_batch_size": plan.global_batch_size,
    }
    if times.timed:
        durations, waits = zip(*times.timed, strict=True)
        images_per_sec = timing.images_per_sec(plan.global_batch_size, durations)
        result |= {
            "warmup_steps": times.warmup_steps,
            "timed_steps": len(durations),
            "images_per_sec": images_per_sec,
            "images_per_sec_per_worker": images_per_sec / group.worker.size,
            "step_time_ms": timing.summarize(durations)._asdict(),
            "data_wait_ms": 1000 * math.fsum(waits) / len(waits),
            "final_loss": times.final_loss,
        }
    if times.allreduce_sec is not None:
        result["allreduce_ms"] = 1000 * times.allreduce_sec
    if evaluation is not None:
        result["eval"] = evaluation.as_dict()
    return result


def describe_start(
    config: Config, group: Group, info: DatasetInfo, plan: Plan, *, done: int, is_complete: bool
) -> str:
    """Returns the two lines before the first step; on most terminals none of them wraps.

    Args:
      config: configuration of the run.
      group: the workers.
      info: description of the data.
      plan: plan of the run.
      done: number of steps done earlier.
      is_complete: whether none is left to be done.
    """
    state = f"; goes on after step {done}" if done else ""
    if is_complete:
        state = "; it is complete already"
    workers = f"{group.worker.size} worker{'s' if group.worker.size > 1 else ''}"
    return (
        f"{config.model.model} on {info.name}: {info.num_train_examples} training"
        f"{_describe_repeats(config, info)}, {info.num_validation_examples} validation "
        f"examples, {info.num_classes} classes\n"
        f"{workers} x {config.data.batch_size} images, {config.model.precision}; "
        f"{plan.total_steps} steps ({plan.epoch_at(plan.total_steps):.1f} epochs){state}"
    )


def _describe_repeats(config: Config, info: DatasetInfo) -> str:
    """Returns how many of the training examples an epoch has, where it has not all of them."""
    repeats = config.data.repeated_augmentation
    if repeats == 1 or info.name == synthetic.NAME:
        return ""
    distinct = math.ceil(info.num_train_examples / repeats)
    # At both ends of an epoch there may be an example that comes in two of them.
    about = "about " if info.num_train_examples % repeats else ""
    return f" ({about}{distinct} in an epoch, {repeats} times each)"


def describe_end(config: Config, result: dict[str, Any]) -> str:
    """Returns the last line of a run whose result, from `summarize`, is `result`."""
    parts = [f"finished after {result['steps']} steps"]
    if "images_per_sec" in result:
        parts.append(
            f"{result['images_per_sec']:.1f} images/s over all workers "
            f"({result['step_time_ms']['mean']:.1f} ms/step{_describe_allreduce(result)})"
        )
    if config.run.logdir is not None:
        parts.append(f"logs: {config.run.logdir}")
    return "; ".join(parts)


def _describe_allreduce(result: dict[str, Any]) -> str:
    """Returns how much of a step the averaging alone was, where it was timed at the start."""
    if "allreduce_ms" not in result:
        return ""
    return f"; averaging alone took {result['allreduce_ms']:.1f} ms"
