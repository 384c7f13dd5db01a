"""The training loop."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import (
    checkpoints,
    distributed,
    evaluate,
    graph,
    learning_rate,
    plan,
    results,
    timing,
)
from trainer.config import Config, UserError
from trainer.distributed import Group
from trainer.inputs.dataset import DatasetInfo, open_dataset
from trainer.session import create_config
from trainer.telemetry import input_samples, pauses, run_page
from trainer.telemetry.console import Console, create_console
from trainer.telemetry.mllog import MLPerfLog, create_mllog
from trainer.telemetry.monitor import Monitor, create_monitor
from trainer.telemetry.run_writer import create_writer
from trainer.telemetry.step_log import Step


class RunTimes:
    """What is kept of each step until the end of the run.

    Attributes:
      durations_sec: from the end of a step to the end of the next.
      data_waits_sec: the part of each in which rank 0 waited for its input.
      final_loss: of the last step; None before the first.
    """

    def __init__(self) -> None:
        self.durations_sec: list[float] = []
        self.data_waits_sec: list[float] = []
        self.final_loss: float | None = None

    def add(self, step: Step) -> None:
        """Takes note of a step."""
        self.durations_sec.append(step.duration_sec)
        self.data_waits_sec.append(step.data_wait_sec)
        self.final_loss = step.loss


class Setup(NamedTuple):
    """Everything that the loop needs, built before its first collective."""

    info: DatasetInfo
    plan: plan.Plan
    train: graph.TrainGraph
    evaluation: graph.EvaluationGraph | None
    samples: input_samples.InputSamples
    store: checkpoints.Store
    session: tf1.Session
    mllog: MLPerfLog


def run(config: Config) -> int:
    """Trains; evaluates now and then and at the end. All workers of a run call it."""
    with_timeline = config.telemetry.profile_steps is not None
    group = distributed.connect(config.communication, with_timeline=with_timeline)
    status = results.Status(config.run.logdir, group.worker)
    with _failures_in_status(status), group.explain_loss():
        with group.fail_together():
            setup = _set_up(config, group)
        with setup.session:
            setup.session.run(setup.train.broadcast_op)
            result = _train(config, group, setup, status)
    results.report(config, group.worker, result, text=_describe_end(config, result))
    group.shutdown()
    return 0


def _set_up(config: Config, group: Group) -> Setup:
    """Opens the data, builds the graph and, on rank 0, restores the checkpoint. No collectives."""
    results.check_places(config, group.worker)
    mllog = create_mllog(config, rank=group.worker.rank)
    if config.run.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = open_dataset(config.data, num_classes=config.model.num_classes)
    course = plan.create_plan(
        config.run,
        global_batch_size=config.data.batch_size
        * config.optimizer.accumulate_steps
        * group.worker.size,
        train_examples=dataset.info.num_train_examples,
        validation_examples=dataset.info.num_validation_examples,
    )
    with tf.Graph().as_default() as main_graph:
        tf1.set_random_seed(config.run.seed)
        train = graph.build_train_graph(config, group, dataset)
        evaluation = None
        if course.evaluate_every is not None:
            evaluation = graph.build_evaluation_graph(config, group, dataset)
        samples = input_samples.create_input_samples(
            input_samples.build_samples(train.stream, config, dataset.info.num_classes),
            config,
            rank=group.worker.rank,
            names=dataset.info.names_of_classes,
        )
        store = checkpoints.create_store(
            config.run, rank=group.worker.rank, variables=tf1.global_variables()
        )
        initializer = tf1.global_variables_initializer()
        main_graph.finalize()
    session = tf1.Session(
        graph=main_graph,
        config=create_config(
            local_rank=group.worker.local_rank,
            local_size=group.worker.local_size,
            xla=config.model.xla,
        ),
    )
    session.run(initializer)
    store.restore(session)
    return Setup(dataset.info, course, train, evaluation, samples, store, session, mllog)


@contextlib.contextmanager
def _failures_in_status(status: results.Status) -> Iterator[None]:
    """Writes why a run failed into status.json, and lets the error pass."""
    try:
        yield
    except BaseException as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        status.set("failed", reason=reason)
        raise


def _train(config: Config, group: Group, setup: Setup, status: results.Status) -> dict[str, Any]:
    """Takes the steps that are left, and evaluates; returns the result."""
    course, rank = setup.plan, group.worker.rank
    done = int(setup.session.run(setup.train.global_step))
    is_complete = done >= course.total_steps
    logdir = None if is_complete else config.run.logdir
    status.set("running", step=done)
    results.write_model(config, group.worker, setup.info.class_names)
    with (
        contextlib.closing(create_console(rank, course, first_step=done + 1)) as console,
        contextlib.closing(create_writer(logdir, rank=rank, first_step=done + 1)) as writer,
    ):
        monitor = create_monitor(
            config,
            group,
            course,
            setup.train,
            logdir=logdir,
            class_names=setup.info.names_of_classes,
            writer=writer,
            console=console,
            mllog=setup.mllog,
        )
        setup.mllog.begin(
            course,
            done=done,
            train_examples=setup.info.num_train_examples,
            eval_examples=setup.info.num_validation_examples,
        )
        for line in (*setup.store.story, _describe_start(config, group, setup, done)):
            console.say(line)
        if is_complete:
            times = RunTimes()
            evaluation = _evaluate(group, setup, done, monitor)
        else:
            with contextlib.closing(monitor.profiler):
                times, evaluation = _loop(config, group, setup, done, monitor, status)
        steps = max(done, course.total_steps)
        result = _summarize(group, course, steps, times, evaluation)
        run_page.write_end(writer, steps, result)
        monitor.mllog.end()
    status.set("finished", step=steps)
    return result


def _loop(
    config: Config,
    group: Group,
    setup: Setup,
    done: int,
    monitor: Monitor,
    status: results.Status,
) -> tuple[RunTimes, evaluate.Evaluation | None]:
    """The loop. `done` steps were taken before; all workers hold the same variables."""
    session, course, stream = setup.session, setup.plan, setup.train.stream
    schedule = learning_rate.create_schedule(
        config.optimizer,
        global_batch_size=course.global_batch_size,
        total_steps=course.total_steps,
        steps_per_epoch=course.steps_per_epoch,
    )
    take_step = setup.train.create_step(session)
    draw_step = setup.train.create_step(session, also=setup.train.histograms.gradients)
    times = RunTimes()
    evaluation = None

    run_page.write_run_page(
        monitor.writer, config, group.worker, course, done=done, graph=session.graph
    )
    batches_done = done * config.optimizer.accumulate_steps
    with graph.explain_errors(stream):
        setup.samples.show(session, stream, monitor.writer, step=done, first_batch=batches_done)
    monitor.profiler.after_step(done)
    session.run(stream.initializer, {stream.start_step: batches_done})
    monitor.clock.start()
    for number in range(done + 1, course.total_steps + 1):
        rate = schedule(number - 1)
        take = draw_step if monitor.histograms.is_due(number) else take_step
        with graph.explain_errors(stream):
            metrics, histograms = take(rate, 0.0)
        step = as_step(number, monitor.clock.finish_step(), rate, metrics)
        times.add(step)
        monitor.log.add(step)
        monitor.after_step(session, number, histograms)
        if course.reports_at(number) or step.is_lost:
            with monitor.pauses.during(pauses.REPORT, number):
                monitor.log.flush()
        _refuse_lost(step)
        if course.saves_at(number):
            with monitor.pauses.during(pauses.CHECKPOINT, number):
                monitor.writer.flush()
                _save(setup, number, monitor.console)
                status.set("running", step=number)
        if course.evaluates_at(number):
            with monitor.pauses.during(pauses.EVALUATION, number):
                evaluation = _evaluate(group, setup, number, monitor)
    return times, evaluation


def as_step(number: int, duration_sec: float, rate: float, metrics: graph.StepMetrics) -> Step:
    """A step's numbers, once it is over: called at its end, since it looks at the clock."""
    waited_sec = max(0.0, time.time() - float(metrics.gradients_ready_sec))
    return Step(
        number=number,
        duration_sec=duration_sec,
        own_sec=max(0.0, duration_sec - waited_sec),
        data_wait_sec=float(metrics.data_wait_sec),
        learning_rate=rate,
        loss=float(metrics.loss),
        cross_entropy=float(metrics.cross_entropy),
        weight_decay_loss=float(metrics.weight_decay_loss),
        gradient_norm=float(metrics.gradient_norm),
        top1=float(metrics.top1),
        loss_scale=float(metrics.loss_scale),
        is_applied=bool(metrics.is_applied),
    )


def _refuse_lost(step: Step) -> None:
    """Ends a run whose loss or gradient is not finite: on all workers, since all see the mean."""
    if step.is_lost:
        raise UserError(
            f"step {step.number}: the loss is {step.loss}, the gradient's norm "
            f"{step.gradient_norm}; lower --base_learning_rate or lengthen --warmup_epochs. "
            "The last checkpoint is from before"
        )


def _save(setup: Setup, step: int, console: Console) -> None:
    """Saves a checkpoint. A disk that is full now may not be the next time: training goes on."""
    try:
        setup.store.save(setup.session, step)
    except OSError as error:
        if step == setup.plan.total_steps:
            lost = UserError(
                f"--logdir: the last checkpoint, of step {step}, could not be saved ({error}): "
                "make room and start again, to go on from the one before"
            )
            lost.known_to_all = False
            raise lost from error
        console.say(f"step {step}: no checkpoint was saved ({error}); training goes on")


def _evaluate(
    group: Group, setup: Setup, step: int, monitor: Monitor
) -> evaluate.Evaluation | None:
    """Evaluates, where there is something to evaluate on, and tells the result."""
    if setup.evaluation is None:
        return None
    with monitor.mllog.evaluating(step) as accuracies:
        result = evaluate.evaluate(setup.session, setup.evaluation, group, monitor.views)
        accuracies.append(result.top1)
    monitor.console.say(f"step {step}: evaluation: {result}")
    evaluate.write_scalars(monitor.writer, step, result)
    monitor.views.publish(step, group)
    return result


def _summarize(
    group: Group,
    course: plan.Plan,
    steps: int,
    times: RunTimes,
    evaluation: evaluate.Evaluation | None,
) -> dict[str, Any]:
    """The result of the run, as --result_json has it. Times are without the warm-up's steps."""
    result: dict[str, Any] = {
        "steps": steps,
        "epochs": course.epoch_at(steps),
        "workers": group.worker.size,
        "global_batch_size": course.global_batch_size,
    }
    if times.durations_sec:
        warmup = timing.warmup_steps(len(times.durations_sec))
        durations = times.durations_sec[warmup:]
        waits = times.data_waits_sec[warmup:]
        images_per_sec = timing.images_per_sec(course.global_batch_size, durations)
        result |= {
            "warmup_steps": warmup,
            "timed_steps": len(durations),
            "images_per_sec": images_per_sec,
            "images_per_sec_per_worker": images_per_sec / group.worker.size,
            "step_time_ms": timing.summarize(durations)._asdict(),
            "data_wait_ms": 1000 * math.fsum(waits) / len(waits),
            "final_loss": times.final_loss,
        }
    if evaluation is not None:
        result["eval"] = dataclasses.asdict(evaluation)
    return result


def _describe_start(config: Config, group: Group, setup: Setup, done: int) -> str:
    info, course = setup.info, setup.plan
    state = f"; goes on after step {done}" if done else ""
    if done >= course.total_steps:
        state = "; it is complete already"
    return (
        f"{config.model.model} on {info.name}: {info.num_train_examples} training and "
        f"{info.num_validation_examples} validation examples, {info.num_classes} classes; "
        f"{group.worker.size} workers x {config.data.batch_size} images, {config.model.precision}; "
        f"{course.total_steps} steps ({course.epoch_at(course.total_steps):.1f} epochs){state}"
    )


def _describe_end(config: Config, result: dict[str, Any]) -> str:
    parts = [f"finished after {result['steps']} steps"]
    if "images_per_sec" in result:
        parts.append(
            f"{result['images_per_sec']:.1f} images/s over all workers "
            f"({result['step_time_ms']['mean']:.1f} ms/step)"
        )
    if config.run.logdir is not None:
        parts.append(f"logs: {config.run.logdir}")
    return "; ".join(parts)
