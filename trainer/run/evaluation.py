"""Exact evaluation: each example counts once, whatever the batch size and the number of workers."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow.compat.v1 as tf1

from trainer.distributed import Group
from trainer.errors import UserError
from trainer.graph.evaluation import EvaluationGraph
from trainer.telemetry import tags
from trainer.telemetry.writers.protocol import Writer


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      count: number of examples.
      top1: share of the examples whose label got the highest logit.
      top5: share of the examples whose label is among the five highest logits.
      loss: mean cross-entropy.
      ema_top1, ema_top5, ema_loss: those of the network with averaged weights; None where a run
        keeps no averages.
    """

    count: int
    top1: float
    top5: float
    loss: float
    ema_top1: float | None = None
    ema_top5: float | None = None
    ema_loss: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Returns what there is by name, as results have it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}

    def describe(self, num_classes: int) -> str:
        """Returns the result in a line; without the top-5, where no class can be missing in it."""
        top5 = f"top-5 {self.top5:.4f}  " if tags.tells_top5(num_classes) else ""
        averaged = "" if self.ema_top1 is None else f"; averaged weights: top-1 {self.ema_top1:.4f}"
        return f"top-1 {self.top1:.4f}  {top5}loss {self.loss:.4f}  ({self.count} images){averaged}"


class Observer(Protocol):
    """An observer of what an evaluation computes of each batch."""

    def fetches(self, evaluation: EvaluationGraph) -> Any:
        """Returns what `add` needs of the next batch."""

    def add(self, values: Any, name_of: Callable[[int], str]) -> None:
        """Adds a batch. All workers add as many batches.

        Args:
          values: the values of `fetches`.
          name_of: function that returns the short name of the example in a row of the batch.
        """


class Interrupted(Exception):
    """Ends an evaluation, on all workers together, when one of them was asked to stop."""


def evaluate(
    session: tf1.Session,
    evaluation: EvaluationGraph,
    group: Group,
    *observers: Observer,
    is_stop_asked: Callable[[], bool] = lambda: False,
    after_batch: Callable[[int], object] | None = None,
) -> Evaluation:
    """Evaluates a session's variables on the validation data. A collective.

    Every worker evaluates its part; the sums are added up in float64.

    Args:
      session: session that has the variables.
      evaluation: graph that evaluates a batch.
      group: the workers.
      observers: objects that see each batch, such as pictures of the evaluation.
      is_stop_asked: function that returns whether this worker was asked to stop; about once a
        second, the workers tell each other.
      after_batch: function that is called after each batch with its number, from 1 on.

    Raises:
      Interrupted: a worker was asked to stop.
      UserError: none of the examples can be read.
    """
    stream = evaluation.stream
    session.run(stream.initializer, {stream.start_step: 0})
    totals = np.zeros(evaluation.totals.shape[0])
    ask_every = 0
    with stream.explain_errors():
        for number in range(evaluation.steps):
            began_sec = time.perf_counter()
            wanted = [observer.fetches(evaluation) for observer in observers]
            sums, seen = session.run((evaluation.totals, wanted))
            totals += sums
            name_of = functools.partial(stream.name_of, number)
            for observer, values in zip(observers, seen, strict=True):
                observer.add(values, name_of)
            if after_batch is not None:
                after_batch(number + 1)
            if number == 1:  # The first one is slower than the others.
                slowest_sec = max(group.gather(time.perf_counter() - began_sec))
                ask_every = max(1, round(1 / slowest_sec))
            if ask_every and number % ask_every == 0 and any(group.gather(is_stop_asked())):
                raise Interrupted
    count, *sums = np.sum(group.gather(totals.tolist()), axis=0)
    if not count:
        raise UserError("none of the validation examples can be read: there is nothing to evaluate")
    # Behind the first four are those of the averaged weights, which begin with the count again.
    shares = [total / count for total in (*sums[:3], *sums[4:])]
    return Evaluation(int(count), *shares)


def write_scalars(
    writer: Writer, step: int, result: Evaluation, *, num_classes: int, of_averages: bool = False
) -> None:
    """Writes the result of an evaluation of the variables after a step.

    Args:
      writer: gets the scalars.
      step: the step.
      result: the result.
      num_classes: number of classes, which tells whether the top-5 says something.
      of_averages: whether the averages of the weights were evaluated in their place.
    """
    if of_averages:
        scalars = {tags.EVAL_EMA_TOP1: result.top1, tags.EVAL_EMA_LOSS: result.loss}
        writer.write(step, scalars, wall_time=time.time())
        return
    scalars = {tags.EVAL_TOP1: result.top1, tags.EVAL_LOSS: result.loss}
    if result.ema_top1 is not None and result.ema_loss is not None:
        scalars |= {tags.EVAL_EMA_TOP1: result.ema_top1, tags.EVAL_EMA_LOSS: result.ema_loss}
    if tags.tells_top5(num_classes):
        scalars[tags.EVAL_TOP5] = result.top5
    writer.write(step, scalars, wall_time=time.time())
