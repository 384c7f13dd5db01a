"""The telemetry of one worker of a run, put together."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow.compat.v1 as tf1

from trainer.config import Config
from trainer.distributed import Group
from trainer.graph.train_step import TrainGraph
from trainer.machine import gpu, session
from trainer.machine.gpu import UseMeter
from trainer.plan import Plan
from trainer.telemetry import tags
from trainer.telemetry.console import Console
from trainer.telemetry.hello import say_hello
from trainer.telemetry.histograms import HistogramLog, create_histogram_log
from trainer.telemetry.memory_use import MemoryUse
from trainer.telemetry.mllog import MLPerfLog
from trainer.telemetry.pages.evaluation_views import EvaluationViews, create_evaluation_views
from trainer.telemetry.pauses import Pauses
from trainer.telemetry.slow_worker import SlowWorkerWatch
from trainer.telemetry.step_log import StepLog
from trainer.telemetry.step_profiler import StepProfiler, create_step_profiler
from trainer.telemetry.writers.protocol import Writer
from trainer.timing import StepClock


class Monitor(NamedTuple):
    """The telemetry of one worker; on ranks other than 0 most parts do nothing.

    Attributes:
      writer: writer of scalars and summaries.
      console: console, for messages to the person who started the run.
      clock: clock of the steps.
      pauses: log of the times between steps, which belong to no step.
      log: log of the steps' scalars.
      histograms: log of the histograms of weights and gradients.
      profiler: profiler of --profile_steps.
      views: pictures of an evaluation.
      mllog: log of --mllog.
    """

    writer: Writer
    console: Console
    clock: StepClock
    pauses: Pauses
    log: StepLog
    histograms: HistogramLog
    profiler: StepProfiler
    views: EvaluationViews
    mllog: MLPerfLog

    def after_step(self, session: tf1.Session, step: int, gradients: bytes) -> None:
        """Writes what is due after a step, in pauses.

        Args:
          session: session of the run.
          step: number of the step.
          gradients: histograms of the gradients, where they are due.
        """
        self.mllog.after_step(step)
        if self.histograms.is_due(step):
            with self.pauses.during(tags.HISTOGRAMS_MS, step):
                self.histograms.write(session, step, gradients)
        if self.profiler.is_due(step):
            with self.pauses.during(tags.PROFILE_MS, step):
                self.profiler.after_step(step)


@contextlib.contextmanager
def metering_gpu(group: Group) -> Iterator[UseMeter | None]:
    """Yields the meter of this worker's GPU; None where its use can't be told."""
    number = session.find_gpu(group.worker.local_rank, group.worker.local_size)
    with gpu.metering(number) as meter:
        yield meter


def create_monitor(
    config: Config,
    group: Group,
    plan: Plan,
    train: TrainGraph,
    *,
    logdir: str | None,
    class_names: Sequence[str],
    writer: Writer,
    console: Console,
    mllog: MLPerfLog,
    gpu_meter: UseMeter | None = None,
) -> Monitor:
    """Returns the monitor of one worker of a run; prints the list of workers. A collective.

    Args:
      config: configuration of the run.
      group: the workers.
      plan: plan of the run.
      train: graph of the step.
      logdir: folder of the logs; None where the run is not logged.
      class_names: as many names as the network has classes.
      writer, console, mllog: those of this worker.
      gpu_meter: meter of this worker's GPU; None where its use can't be told.
    """
    rank = group.worker.rank
    names = say_hello(group, console)
    memory_use = MemoryUse(group.worker.local_rank)
    if memory_use.trouble is not None:
        console.say(memory_use.trouble)
    clock = StepClock()
    return Monitor(
        writer=writer,
        console=console,
        clock=clock,
        pauses=Pauses(clock, writer),
        log=StepLog(
            group,
            writer,
            console,
            images_per_step=plan.global_batch_size,
            count_bad_examples=train.stream.bad_examples,
            memory_use=memory_use,
            watch=SlowWorkerWatch(names),
            gpu_meter=gpu_meter,
        ),
        histograms=create_histogram_log(
            config.telemetry, train.histograms, rank=rank, writer=writer
        ),
        profiler=create_step_profiler(logdir, config.telemetry.profile_range, group, console),
        views=create_evaluation_views(logdir, group.worker, writer, class_names),
        mllog=mllog,
    )
