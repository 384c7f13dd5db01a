"""The training loop."""

import contextlib
import dataclasses
import enum
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import (
    agreement,
    checkpoint_store,
    distributed,
    environment,
    evaluate,
    exit_status,
    graph,
    learning_rate,
    nonfinite,
    plan,
    results,
    run_folder,
    timing,
    watchdog,
)
from trainer.checkpoint_manifest import RunFacts
from trainer.config import Config
from trainer.distributed import Group
from trainer.inputs.dataset import DatasetInfo, open_dataset
from trainer.loop_guard import LoopGuard
from trainer.protection import Protection, protect
from trainer.run_setup import Setup
from trainer.session import create_config
from trainer.status import Status
from trainer.telemetry.console import Console, create_console
from trainer.telemetry.step_log import Step, StepLog
from trainer.telemetry.writers import Writer, create_writer


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


class Ending(enum.Enum):
    """How the loop ended."""

    FINISHED = enum.auto()
    PREEMPTED = enum.auto()
    ROLLED_BACK = enum.auto()


def run(config: Config) -> int:
    """Trains; evaluates now and then and at the end. All workers of a run call it."""
    watchdog.set_stall_check(config.run.watchdog_seconds, os.environ)
    group = distributed.connect(config.communication)
    status = Status(config.run.logdir, rank=group.worker.rank)
    with (
        run_folder.hold(config.run.logdir, group) as notes,
        protect(config.run, status, group.worker) as protection,
        _failures_in_status(status),
        group.explain_loss(),
    ):
        agreement.check_program(group, config)
        with group.fail_together():
            setup = _set_up(config, group)
        agreement.check_data(group, setup.info)
        setup.store.story = (*notes, *setup.store.story)
        with setup.session:
            setup.session.run(setup.train.broadcast_op)
            ending = Ending.ROLLED_BACK
            while ending is Ending.ROLLED_BACK:
                ending, result = _train(config, group, setup, status, protection)
    if ending is Ending.FINISHED:
        results.report(config, group.worker, result, text=_describe_end(config, result))
    group.shutdown()
    return exit_status.PREEMPTED if ending is Ending.PREEMPTED else 0


def _set_up(config: Config, group: Group) -> Setup:
    """Opens the data, builds the graph and, on rank 0, restores the checkpoint. No collectives."""
    results.check_places(config, group.worker)
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
        store = checkpoint_store.create_store(
            config.run,
            rank=group.worker.rank,
            variables=tf1.global_variables(),
            facts=_create_facts(config, group, dataset.info, course),
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
    store.check_room()
    store.restore(session)
    policy = nonfinite.Policy(config.run.on_nonfinite)
    return Setup(dataset.info, course, train, evaluation, store, policy, session)


def _create_facts(config: Config, group: Group, info: DatasetInfo, course: plan.Plan) -> RunFacts:
    """What the run's checkpoints say of it."""
    return RunFacts(
        workers=group.worker.size,
        global_batch_size=course.global_batch_size,
        total_steps=course.total_steps,
        train_examples=info.num_train_examples,
        fingerprint=info.fingerprint,
        versions=environment.versions(),
        config=dataclasses.asdict(config),
    )


@contextlib.contextmanager
def _failures_in_status(status: Status) -> Iterator[None]:
    """Writes why a run failed into status.json, and lets the error pass."""
    try:
        yield
    except BaseException as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        status.set("failed", reason=reason)
        raise


def _train(
    config: Config, group: Group, setup: Setup, status: Status, protection: Protection
) -> tuple[Ending, dict[str, Any]]:
    """Takes the steps that are left, and evaluates; returns how it ended, and the result."""
    course, rank = setup.plan, group.worker.rank
    done = int(setup.session.run(setup.train.global_step))
    is_complete = done >= course.total_steps
    lacks_evaluation = any(group.gather(setup.store.lacks_evaluation(done)))
    logdir = None if is_complete and not lacks_evaluation else config.run.logdir
    status.set("running", step=done)
    results.write_model(config, group.worker, setup.info.class_names)
    times, evaluation, ending = RunTimes(), None, Ending.FINISHED
    with (
        contextlib.closing(create_console(rank, course, first_step=done + 1)) as console,
        contextlib.closing(create_writer(logdir, rank=rank, first_step=done + 1)) as writer,
    ):
        for line in (*setup.store.story, _describe_start(config, group, setup, done)):
            console.say(line)
        guard = LoopGuard(group, setup, console, status, protection, done=done)
        if is_complete or (lacks_evaluation and course.evaluates_at(done)):
            evaluation, ending = _evaluate(group, setup, done, writer, console, guard)
        if ending is Ending.PREEMPTED:
            guard.stop(done)
        elif not is_complete:
            times, evaluation, ending = _loop(config, group, setup, done, writer, console, guard)
    steps = max(done, course.total_steps)
    if ending is Ending.FINISHED:
        status.set("finished", step=steps)
    return ending, _summarize(group, course, steps, times, evaluation)


def _loop(
    config: Config,
    group: Group,
    setup: Setup,
    done: int,
    writer: Writer,
    console: Console,
    guard: LoopGuard,
) -> tuple[RunTimes, evaluate.Evaluation | None, Ending]:
    """The loop. `done` steps were taken before; all workers hold the same variables."""
    session, course, stream = setup.session, setup.plan, setup.train.stream
    log = StepLog(
        group,
        writer,
        console,
        images_per_step=course.global_batch_size,
        count_bad_examples=stream.bad_examples,
    )
    schedule = learning_rate.create_schedule(
        config.optimizer,
        global_batch_size=course.global_batch_size,
        total_steps=course.total_steps,
        steps_per_epoch=course.steps_per_epoch,
    )
    take_step = setup.train.create_step(session)
    clock = timing.StepClock()
    times = RunTimes()
    evaluation = None

    session.run(stream.initializer, {stream.start_step: done * config.optimizer.accumulate_steps})
    clock.start()
    for number in range(done + 1, course.total_steps + 1):
        rate = schedule(number - 1)
        with graph.explain_errors(stream):
            metrics = take_step(rate, guard.request())
        step = _as_step(number, clock.finish_step(), rate, metrics)
        guard.finish_step(number)
        times.add(step)
        log.add(step)
        is_asked = metrics.request > 0
        if course.reports_at(number) or is_asked or step.is_lost:
            with clock.pause():
                log.flush()
        if step.is_lost and guard.judge(number, metrics):
            return times, evaluation, Ending.ROLLED_BACK
        if course.saves_at(number):
            with clock.pause():
                writer.flush()
                guard.save(number)
        if course.evaluates_at(number) and not is_asked:
            with clock.pause():
                evaluation, ending = _evaluate(group, setup, number, writer, console, guard)
                is_asked = ending is Ending.PREEMPTED
        if is_asked:
            writer.flush()
            guard.stop(number)
            return times, evaluation, Ending.PREEMPTED
    return times, evaluation, Ending.FINISHED


def _as_step(number: int, duration_sec: float, rate: float, metrics: graph.StepMetrics) -> Step:
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


def _evaluate(
    group: Group, setup: Setup, step: int, writer: Writer, console: Console, guard: LoopGuard
) -> tuple[evaluate.Evaluation | None, Ending]:
    """Evaluates, where there is something to evaluate on, and tells the result."""
    if setup.evaluation is None:
        return None, Ending.FINISHED
    try:
        with guard.long_phase(f"the evaluation after step {step}"):
            result = evaluate.evaluate(
                setup.session, setup.evaluation, group, is_stop_asked=guard.is_stop_asked
            )
    except evaluate.Interrupted:
        return None, Ending.PREEMPTED
    console.say(f"step {step}: evaluation: {result}")
    scalars = {
        "eval/top1": result.top1,
        "eval/top5": result.top5,
        "eval/loss": result.loss,
    }
    writer.write(step, scalars, wall_time=time.time())
    writer.flush()
    guard.note_evaluation(step, result.top1)
    return result, Ending.FINISHED


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
