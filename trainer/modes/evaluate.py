"""Exact evaluation: each example counts once, whatever the batch size and the number of workers."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed
from trainer.checkpoints import restore
from trainer.config import Config
from trainer.distributed import Group
from trainer.errors import UserError
from trainer.graph.evaluation import EvaluationGraph, build_evaluation_graph
from trainer.inputs.dataset import open_dataset
from trainer.machine.session import create_config
from trainer.run import outputs
from trainer.telemetry.pages.evaluation_views import (
    EvaluationViews,
    NullEvaluationViews,
    create_evaluation_views,
)
from trainer.telemetry.writers.json_lines import newest_step
from trainer.telemetry.writers.protocol import Writer
from trainer.telemetry.writers.run_writer import create_writer


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      count: examples.
      top1: share of them whose label got the highest logit.
      top5: share of them whose label is among the five highest.
      loss: mean cross-entropy.
    """

    count: int
    top1: float
    top5: float
    loss: float

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.4f}  top-5 {self.top5:.4f}  loss {self.loss:.4f}  "
            f"({self.count} examples)"
        )


class Interrupted(Exception):
    """A worker was asked to stop in the middle of an evaluation. Raised on all workers together."""


def evaluate(
    session: tf1.Session,
    evaluation: EvaluationGraph,
    group: Group,
    views: EvaluationViews | None = None,
    *,
    is_stop_asked: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluates a session's variables on the validation data. A collective.

    Every worker evaluates its part; the sums are added up in float64.

    Args:
      session: holds the variables.
      evaluation: of a batch.
      group: the workers.
      views: hear of each batch's answers.
      is_stop_asked: whether this worker was asked to stop; about once a second, the workers tell
        each other.

    Raises:
      Interrupted: one was.
      UserError: there is nothing to evaluate.
    """
    views = views or NullEvaluationViews()
    stream = evaluation.stream
    session.run(stream.initializer, {stream.start_step: 0})
    totals = np.zeros(4)
    ask_every = 0
    with stream.explain_errors():
        for number in range(evaluation.steps):
            began_sec = time.perf_counter()
            sums, seen = session.run((evaluation.totals, views.fetches(evaluation)))
            totals += sums
            views.add(seen)
            if number == 1:  # The first one is slower than the others.
                slowest_sec = max(group.gather(time.perf_counter() - began_sec))
                ask_every = max(1, round(1 / slowest_sec))
            if ask_every and number % ask_every == 0 and any(group.gather(is_stop_asked())):
                raise Interrupted
    count, top1, top5, loss = np.sum(group.gather(totals.tolist()), axis=0)
    if not count:
        raise UserError("none of the validation examples can be read: there is nothing to evaluate")
    return Evaluation(int(count), top1 / count, top5 / count, loss / count)


def write_scalars(writer: Writer, step: int, result: Evaluation) -> None:
    """Writes the result of an evaluation of the variables after a step."""
    scalars = {"eval/top1": result.top1, "eval/top5": result.top5, "eval/loss": result.loss}
    writer.write(step, scalars, wall_time=time.time())


def run(config: Config) -> int:
    """Evaluates --init_checkpoint, or the newest good checkpoint in --logdir."""
    group = distributed.connect(config.communication)
    with group.fail_together():
        config = outputs.as_trained(config)
        prefix = restore.choose(config.run)
    with group.explain_loss():
        prefix = group.gather(prefix)[0]  # A run may save another one at this moment.
    with group.fail_together():
        outputs.check_places(config, group.worker)
        num_classes = config.model.num_classes or restore.count_classes(prefix)
        dataset = open_dataset(config.data, num_classes=num_classes)
        if not dataset.info.num_validation_examples:
            raise UserError(f"--data_dir: {dataset.info.name} has no validation examples")
        with tf.Graph().as_default():
            evaluation = build_evaluation_graph(config, group, dataset)
            session = tf1.Session(
                config=create_config(
                    local_rank=group.worker.local_rank,
                    local_size=group.worker.local_size,
                    xla=config.model.xla,
                )
            )
            restore.restore_weights(session, prefix, restore.network_variables(), new_logits=False)
            session.graph.finalize()
    # Weights from elsewhere say nothing of the run in --logdir.
    logdir = config.run.logdir if config.run.init_checkpoint is None else None
    with (
        session,
        group.explain_loss(),
        contextlib.closing(create_writer(logdir, rank=group.worker.rank)) as writer,
    ):
        names = outputs.class_names(config, num_classes)
        views = create_evaluation_views(logdir, group.worker, writer, names)
        result = evaluate(session, evaluation, group, views)
        step = restore.step_of(prefix)
        text = f"{prefix}: {result}"
        latest = max(group.gather(_latest_evaluation(logdir)))
        if latest > step:
            # TensorBoard would drop what it has of the steps since.
            text += f"; not in TensorBoard, which has the evaluation after step {latest} already"
        else:
            views.publish(step, group)
            write_scalars(writer, step, result)
    outputs.report(config, group.worker, dataclasses.asdict(result), text=text)
    group.shutdown()
    return 0


def _latest_evaluation(logdir: str | None) -> int:
    """The latest step of the run in `logdir` that was evaluated; -1: none was."""
    return -1 if logdir is None else newest_step(Path(logdir) / "metrics.jsonl", "eval/top1")
