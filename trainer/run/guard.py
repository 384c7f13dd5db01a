"""Saves checkpoints, stops early and handles steps that are not finite, for the training loop."""

import contextlib
from typing import NamedTuple

from trainer import exit_status
from trainer.distributed import Group
from trainer.errors import UserError
from trainer.graph import train_step
from trainer.run.saving import Saving
from trainer.run.setup import Setup
from trainer.safety import nonfinite
from trainer.safety.nonfinite import Decision
from trainer.safety.protection import Protection
from trainer.safety.status import Status
from trainer.telemetry.console import Console
from trainer.telemetry.writers.protocol import Writer

# A worker sends 1 with a step where it was asked to stop, and rank 0 this where its clock asks for
# a checkpoint. A power of 2: float32 does not round it away beside the mean of thousands of 0s.
_SAVE = 2.0**-10


class Requests(NamedTuple):
    """Requests of any of the workers to all of them, after a step.

    Attributes:
      stop: the request to stop.
      save: the request to save a checkpoint, by --checkpoint_every_minutes; a stop does so anyway.
    """

    stop: bool
    save: bool


def encode_requests(requests: Requests) -> float:
    """Returns the number that a worker sends with a step."""
    return float(requests.stop) + _SAVE * requests.save


def read_requests(mean: float, workers: int) -> Requests:
    """Returns what any of `workers` asks for, from the mean of their numbers, of float32."""
    asked = mean * workers
    is_stop = asked >= 0.5
    return Requests(is_stop, not is_stop and asked >= 0.5 * _SAVE)


class LoopGuard:
    """Saves, stops early, and handles steps that are not finite: on all workers together."""

    def __init__(
        self,
        group: Group,
        setup: Setup,
        console: Console,
        writer: Writer,
        status: Status,
        protection: Protection,
        *,
        done: int,
    ) -> None:
        """Creates the guard of one loop.

        Args:
          group: the workers.
          setup: what the run has built before its first step.
          console: gets messages about what is done.
          writer: gets scalars about what is done.
          status: the run's status file.
          protection: signals and watchdog of this worker.
          done: number of steps before the loop.
        """
        self._group = group
        self._session = setup.session
        self._train = setup.train
        self._store = setup.store
        self._policy = setup.policy
        self._total_steps = setup.plan.total_steps
        self._console = console
        self._status = status
        self._stop = protection.stop
        self._watchdog = protection.watchdog
        self._saving = Saving(
            setup.store,
            setup.session,
            console,
            writer,
            status,
            done=done or None,
            every_minutes=setup.plan.checkpoint_every_minutes,
        )

    def request(self) -> float:
        """Returns what this worker sends the others in its next step: what it asks them for."""
        return encode_requests(Requests(self.is_stop_asked(), self._saving.is_due_by_time()))

    def read_requests(self, mean: float) -> Requests:
        """Returns what any worker asks for, from the mean of what all have sent in a step."""
        return read_requests(mean, self._group.worker.size)

    def is_stop_asked(self) -> bool:
        """Returns whether this worker was asked to stop."""
        return self._stop.reason is not None

    def finish_step(self, step: int) -> None:
        """Tells the watchdog that a step has ended, and people that a save has."""
        self._watchdog.finish_step(step)
        self._saving.finish_step(step)

    def long_phase(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Gives what is done inside a longer limit from the watchdog."""
        return self._watchdog.long_phase(what)

    def progress(self) -> None:
        """Tells the watchdog that a part of a long phase is done."""
        self._watchdog.progress()

    def note_evaluation(self, step: int, top1: float) -> None:
        """Records an evaluation's result, and keeps the best checkpoint. A collective."""
        with self._watchdog.long_phase("keeping the best"), self._group.fail_together():
            self._saving.settle()
            try:
                self._store.note_evaluation(self._session, step, top1)
            except OSError as error:
                self._console.say(f"step {step}: the best was not kept ({error})")

    def save(self, step: int) -> None:
        """Saves a checkpoint, in the background unless it is the plan's last. A collective.

        All workers wait while rank 0 copies the variables. Where a save fails, training goes on: a
        disk that is full now may have room the next time.

        Args:
          step: the step that is done.

        Raises:
          UserError: the last checkpoint of the run could not be saved.
        """
        if step == self._total_steps:
            self._save_last(step)
            return
        with self._watchdog.long_phase(f"saving step {step}"), self._group.fail_together():
            try:
                self._saving.begin(step)
            except OSError as error:
                self._console.say(
                    f"step {step}: no checkpoint was saved ({error}); training goes on"
                )

    def _save_last(self, step: int) -> None:
        """Saves the state after the last step of a run, unless it is saved. A collective.

        Raises:
          UserError: it could not be saved.
        """
        with self._watchdog.long_phase(f"saving step {step}"), self._group.fail_together():
            try:
                self._saving.save(step)
            except OSError as error:
                raise UserError(
                    f"--logdir: the last checkpoint, of step {step}, could not be saved "
                    f"({error}): make room and start again, to go on from the one before",
                    status=exit_status.FAILED,
                ) from error

    def end_early(self, step: int, top1: float) -> None:
        """Ends the run where an evaluation has reached its goal: saves. A collective.

        Raises:
          UserError: the checkpoint could not be saved.
        """
        self._save_last(step)
        self.note_evaluation(step, top1)  # Of the checkpoint, which may not have been there before.
        self._console.say(f"step {step}: top-1 {top1:.4f} reaches --stop_at_top1; the run ends")

    def stop(self, step: int) -> None:
        """Ends the run early: saves, and prints who asked for it. A collective."""
        lost = ""
        with self._watchdog.long_phase(f"saving step {step}"), self._group.fail_together():
            try:
                self._saving.save(step)
            except OSError as error:
                lost = f"; this step could not be saved ({error})"
        reasons = enumerate(self._group.gather(self._stop.reason))
        rank, reason = next((rank, reason) for rank, reason in reasons if reason is not None)
        text = f"worker {rank} was {reason}{lost}"
        self._status.set("preempted", reason=f"step {step}: {text}")
        what = "the same command goes on from the last checkpoint"
        if not self._store.keeps:
            what = "nothing is kept without --logdir"
        self._console.say(f"step {step}: stopped, since {text}; {what}")

    def judge(self, step: int, metrics: train_step.StepMetrics) -> tuple[str, ...] | None:
        """Applies --on_nonfinite after a step whose update was not applied. A collective.

        Args:
          step: number of the step.
          metrics: metrics of the step.

        Returns:
          None where the run goes on with the next step. Where all workers have gone back to a
          checkpoint: messages for the console about what was restored.

        Raises:
          UserError: the run stops; the state before this step is saved.
        """
        reason = nonfinite.describe(self._group, self._train, step, metrics)
        decision = self._policy.decide(step)
        if decision is Decision.GO_ON:
            self._console.say(f"{reason}; left out; {self._policy.skipped} up to now")
            return None
        if decision is Decision.ROLL_BACK:
            with self._watchdog.long_phase("going back"), self._group.fail_together():
                self._saving.settle()
                messages = self._store.roll_back(self._session)
                if messages is None:
                    raise UserError(
                        f"{reason}. --on_nonfinite: rollback needs a checkpoint to go back to, got "
                        f"none. {self._save_before(step)}",
                        status=exit_status.FAILED,
                    )
            self._session.run(self._train.broadcast_op)
            self._console.say(f"{reason}; all go back to the newest checkpoint, this once")
            return messages
        with self._watchdog.long_phase(f"saving step {step - 1}"), self._group.fail_together():
            saved = self._save_before(step)
        raise UserError(
            f"{reason}. Lower --base_learning_rate, lengthen --warmup_epochs, or see "
            f"--on_nonfinite. {saved}",
            status=exit_status.FAILED,
        )

    def _save_before(self, step: int) -> str:
        try:
            self._saving.save_before(step)
        except OSError as error:
            return f"The state before it could not be saved ({error})"
        if not self._store.keeps:
            return "The state before it is not kept without --logdir"
        return f"The state after step {step - 1} is saved"

    def close(self) -> None:
        """Waits for a save that is under way: the folder is locked as long as it is written to."""
        with self._watchdog.long_phase("the end of a save"):
            self._saving.close()
