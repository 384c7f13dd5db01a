"""The training loop."""

import contextlib
import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer import distributed, exit_status
from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import learning_rate
from trainer.machine.gpu import UseMeter
from trainer.process import launcher, start_up, texts
from trainer.run import first_allreduce, outputs, remarks, summary
from trainer.run.evaluation import Evaluation
from trainer.run.guard import LoopGuard
from trainer.run.monitor import Monitor, create_monitor, metering_gpu
from trainer.run.setup import Setup, at_size, find_first_step, set_up
from trainer.run.summary import RunTimes
from trainer.run.validation import validate
from trainer.safety import agreement, run_folder
from trainer.safety.protection import Protection, protect
from trainer.safety.shortage import explain_shortage
from trainer.safety.status import Status
from trainer.telemetry import tags
from trainer.telemetry.console import Console, create_console, tell_phase
from trainer.telemetry.pages import run_page
from trainer.telemetry.step import measure_step
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.protocol import Writer
from trainer.telemetry.writers.run_writer import create_writer
from trainer.timing import PhaseTimes


class Ending(enum.Enum):
    """The ways in which the loop ends."""

    FINISHED = enum.auto()
    PREEMPTED = enum.auto()
    ROLLED_BACK = enum.auto()
    RESIZED = enum.auto()


class Outcome(NamedTuple):
    """The outcome of the loop.

    Attributes:
      ending: way in which the loop ended.
      evaluation: result of the last evaluation; None where there was none.
      messages: messages about what was restored, or is built anew, where the loop begins again.
      stopped_at: step at which the run reached --stop_at_top1; None: it did not.
    """

    ending: Ending
    evaluation: Evaluation | None = None
    messages: tuple[str, ...] = ()
    stopped_at: int | None = None


def run(config: Config) -> int:
    """Trains; evaluates now and then and at the end. All workers of a run call it."""
    phases = PhaseTimes(start_up.times_up_to_now())
    launched = launcher.find()
    if launched is not None and launched.size > 1:
        tell_phase(f"connecting {launched.size} workers", rank=launched.rank)
    group = distributed.connect(config)
    phases.finish("connect")
    status = Status(config.run.logdir, rank=group.worker.rank)
    with (
        run_folder.hold(config.run.logdir, group) as lock_messages,
        protect(config.run, status, group.worker) as protection,
        _failures_in_status(status),
        group.explain_loss(),
        explain_shortage(config, trains=True),
        contextlib.ExitStack() as stack,
    ):
        agreement.check_program(group, config)
        config, begun_as = outputs.as_begun(config, group)
        first_step = find_first_step(config, group)
        phases.finish("checks")
        with group.fail_together(), explain_shortage(config, trains=True):
            setup = set_up(config, group, phases, first_step=first_step)
        stack.callback(lambda: setup.session.close())  # noqa: PLW0108 (of the last setup)
        agreement.check_data(group, setup.info)
        done = int(setup.session.run(setup.train.broadcast_op))
        phases.finish("broadcast")
        messages, times = (*lock_messages, *begun_as, *setup.messages), RunTimes()
        outcome = None
        while outcome is None or outcome.ending in (Ending.ROLLED_BACK, Ending.RESIZED):
            if outcome is not None:
                done = int(setup.session.run(setup.train.global_step))
            with protection.watchdog.long_phase("building the graph for another size of images"):
                setup = at_size(config, group, setup, done=done)
            if outcome is not None:
                protection.watchdog.begin_graph()
            if outcome is None or outcome.ending is Ending.ROLLED_BACK:  # From a checkpoint.
                status.set("running", step=done)
            outcome, result = _train(
                config, group, setup, status, protection, messages, times, done=done
            )
            messages = outcome.messages
    if outcome.ending is Ending.FINISHED:
        text = summary.describe_end(config, result)
        outputs.report(config, group.worker, result, text=text)
    # The first worker that exits makes the launcher end the others: wait for what rank 0 writes.
    with group.explain_loss():
        group.gather(outcome.ending.name)
    group.shutdown()
    return exit_status.PREEMPTED if outcome.ending is Ending.PREEMPTED else 0


@contextlib.contextmanager
def _failures_in_status(status: Status) -> Iterator[None]:
    """Writes the reason of an error inside into status.json, and lets the error pass."""
    try:
        yield
    except BaseException as error:
        status.set("failed", reason=texts.first_line(error))
        raise


def _train(
    config: Config,
    group: Group,
    setup: Setup,
    status: Status,
    protection: Protection,
    messages: Sequence[str],
    times: RunTimes,
    *,
    done: int,
) -> tuple[Outcome, dict[str, Any]]:
    """Runs the steps that are left, and evaluates; returns the outcome and the run's result.

    Args:
      config: configuration of the run.
      group: the workers.
      setup: what was built for the run.
      status: status of the run.
      protection: protection of this worker.
      messages: lines that come first on the console.
      times: times of the steps; this loop's are added.
      done: number of steps that are done.
    """
    plan, rank = setup.plan, group.worker.rank
    reaches = _reaches(config.run.stop_at_top1, setup.store.top1_after(done))
    is_complete = any(group.gather(done >= plan.total_steps or reaches))
    lacks_evaluation = any(group.gather(setup.store.lacks_evaluation(done)))
    logdir = None if is_complete and not lacks_evaluation else config.run.logdir
    if not times.has_begun:
        outputs.describe_run(config, group.worker, setup.info, replaces=not is_complete)
    outcome = Outcome(Ending.FINISHED)
    with (
        contextlib.closing(create_console(rank, plan, first_step=done + 1)) as console,
        contextlib.closing(create_writer(logdir, rank=rank, first_step=done + 1)) as writer,
        metering_gpu(group) as gpu_meter,
        contextlib.ExitStack() as stack,
    ):
        begun = plan.total_steps if is_complete else done
        monitor = _begin_monitor(
            config, group, setup, logdir, writer, console, gpu_meter, done=begun
        )
        start = summary.describe_start(
            config, group, setup.info, plan, done=done, is_complete=is_complete
        )
        for line in (*messages, start):
            console.say(line)
        if not is_complete and not times.has_begun:
            for line in remarks.describe_telemetry(config.telemetry, plan, done=done):
                console.say(line)
            allreduce = first_allreduce.measure(config, group, setup, console)
            times.allreduce_sec = None if allreduce is None else allreduce.duration_sec
        guard = LoopGuard(group, setup, console, writer, status, protection, done=done)
        stack.enter_context(contextlib.closing(guard))
        if is_complete or (lacks_evaluation and plan.evaluates_at(done)):
            is_logged = logdir is not None and done in metrics_lines.steps_with(
                Path(logdir) / metrics_lines.NAME, tags.EVAL_TOP1
            )
            # Of a run that was complete, flags or data may be others now: it keeps what it has.
            evaluation, is_asked = validate(
                group, setup, done, monitor, guard, is_logged=is_logged, is_noted=lacks_evaluation
            )
            ending = Ending.PREEMPTED if is_asked else Ending.FINISHED
            outcome = outcome._replace(ending=ending, evaluation=evaluation)
            top1 = None if evaluation is None else evaluation.top1
            is_complete = is_complete or _reaches(config.run.stop_at_top1, top1)
        if outcome.ending is Ending.PREEMPTED:
            guard.stop(done)
        elif not is_complete:
            with contextlib.closing(monitor.profiler):
                outcome = _loop(config, group, setup, done, monitor, guard, times)
        steps = done if is_complete else outcome.stopped_at or plan.total_steps
        result = summary.summarize(group, plan, steps, times, outcome.evaluation)
        if outcome.ending is Ending.FINISHED:
            run_page.write_end(writer, steps, result)
            monitor.mllog.end()
    if outcome.ending is Ending.FINISHED:
        status.set("finished", step=steps)
    result |= {"skipped_steps": setup.policy.skipped, "start_sec": setup.phases.durations_sec}
    return outcome, result


def _begin_monitor(
    config: Config,
    group: Group,
    setup: Setup,
    logdir: str | None,
    writer: Writer,
    console: Console,
    gpu_meter: UseMeter | None,
    *,
    done: int,
) -> Monitor:
    """Returns the monitor of the steps after `done`. A collective."""
    monitor = create_monitor(
        config,
        group,
        setup.plan,
        setup.train,
        logdir=logdir,
        class_names=setup.info.names_of_classes,
        writer=writer,
        console=console,
        mllog=setup.mllog,
        gpu_meter=gpu_meter,
    )
    monitor.mllog.begin(
        setup.plan,
        done=done,
        train_examples=setup.info.num_train_examples,
        eval_examples=setup.info.num_validation_examples,
    )
    return monitor


def _loop(
    config: Config,
    group: Group,
    setup: Setup,
    done: int,
    monitor: Monitor,
    guard: LoopGuard,
    times: RunTimes,
) -> Outcome:
    """Runs the loop after `done` steps. All workers have the same variables."""
    session, plan, stream = setup.session, setup.plan, setup.train.stream
    schedule = learning_rate.create_schedule(
        config.optimizer,
        global_batch_size=config.rate_batch_size(group.worker.size),
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
    run_step = setup.train.create_step(session)
    run_histogram_step = setup.train.create_step(session, also=setup.train.histograms.gradients)
    sizes = config.data.sizes_by_epoch
    times.begin_part()
    evaluation = None

    run_page.write_run_page(
        monitor.writer, config, group.worker, plan, setup.info, done=done, graph=session.graph
    )
    monitor.console.say("first step, in which TensorFlow optimizes the graph")
    batches_done = done * config.optimizer.accumulate_steps
    with stream.explain_errors():
        setup.samples.show(session, stream, monitor.writer, step=done, first_batch=batches_done)
    monitor.profiler.after_step(done)
    session.run(stream.initializer, {stream.start_step: batches_done})
    monitor.clock.start()
    for number in range(done + 1, plan.total_steps + 1):
        rate = schedule(number - 1)
        run_next = run_histogram_step if monitor.histograms.is_due(number) else run_step
        with stream.explain_errors():
            metrics, histograms = run_next(rate, guard.request())
        step = measure_step(number, monitor.clock.finish_step(), rate, metrics)
        guard.finish_step(number)
        _tell_start(setup, monitor)
        times.add(step)
        monitor.log.add(step)
        monitor.after_step(session, number, histograms)
        is_asked, saves = guard.read_requests(metrics.request)
        saves = saves or plan.saves_at(number)
        image_size = plan.value_at(number, sizes)
        resizes = number < plan.total_steps and image_size != setup.image_size
        if plan.reports_at(number) or saves or is_asked or step.is_lost or resizes:
            with monitor.pauses.during(tags.REPORT_MS, number):
                monitor.log.flush()
        if step.is_lost:
            messages = guard.judge(number, metrics)
            if messages is not None:
                return Outcome(Ending.ROLLED_BACK, evaluation, messages)
        if saves:
            with monitor.pauses.during(tags.CHECKPOINT_MS, number):
                monitor.writer.flush()
                guard.save(number)
        if plan.evaluates_at(number) and not is_asked:
            with monitor.pauses.during(tags.EVALUATION_MS, number):
                evaluation, is_asked = validate(group, setup, number, monitor, guard)
            if evaluation is not None and _reaches(config.run.stop_at_top1, evaluation.top1):
                guard.end_early(number, evaluation.top1)
                return Outcome(Ending.FINISHED, evaluation, stopped_at=number)
        if is_asked:
            monitor.writer.flush()
            guard.stop(number)
            return Outcome(Ending.PREEMPTED, evaluation)
        if resizes:
            monitor.writer.flush()
            message = f"step {number}: from here on, training images have {image_size} px"
            return Outcome(Ending.RESIZED, evaluation, (message,))
    return Outcome(Ending.FINISHED, evaluation)


def _tell_start(setup: Setup, monitor: Monitor) -> None:
    """Prints, once, how long it took to the end of the run's first step, by phase."""
    line = setup.phases.end("first step")
    if line is not None:
        monitor.console.say(line)


def _reaches(target: float | None, top1: float | None) -> bool:
    """Returns whether an accuracy is at least that of --stop_at_top1."""
    return target is not None and top1 is not None and top1 >= target
