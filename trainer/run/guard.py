"""What the training loop does besides its steps, so that nothing is lost."""

import contextlib

from trainer.distributed import Group
from trainer.errors import UserError
from trainer.graph import train_step
from trainer.run.setup import Setup
from trainer.safety import nonfinite
from trainer.safety.nonfinite import Decision
from trainer.safety.protection import Protection
from trainer.safety.status import Status
from trainer.telemetry.console import Console


class LoopGuard:
    """Saves, stops early, and judges steps that were not finite: on all workers together."""

    def __init__(
        self,
        group: Group,
        setup: Setup,
        console: Console,
        status: Status,
        protection: Protection,
        *,
        done: int,
    ) -> None:
        """Guards one loop.

        Args:
          group: the workers.
          setup: of the run.
          console: hears of what is done.
          status: of the run.
          protection: of this worker.
          done: steps before the loop; their state is saved, if there are any.
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
        self._tried = done or None

    def request(self) -> float:
        """What this worker tells the others at its next step: 1 where it was asked to stop."""
        return float(self.is_stop_asked())

    def is_stop_asked(self) -> bool:
        """Whether this worker was asked to stop."""
        return self._stop.reason is not None

    def finish_step(self, step: int) -> None:
        """Tells the watchdog that a step is over."""
        self._watchdog.finish_step(step)

    def long_phase(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Tells the watchdog that what is done inside may take long."""
        return self._watchdog.long_phase(what)

    def note_evaluation(self, step: int, top1: float) -> None:
        """Has an evaluation's result noted, and the best checkpoint kept. A collective."""
        with self._watchdog.long_phase("keeping the best"), self._group.fail_together():
            try:
                self._store.note_evaluation(self._session, step, top1)
            except OSError as error:
                self._console.say(f"step {step}: the best was not kept ({error})")

    def save(self, step: int) -> None:
        """Saves a checkpoint, unless that was tried for this step. A collective: all wait.

        A disk that is full now may not be the next time: training goes on.

        Raises:
          UserError: it was the last one.
        """
        if self._tried == step:
            return
        self._tried = step  # The same on all workers, whatever becomes of rank 0's.
        with self._watchdog.long_phase(f"saving step {step}"), self._group.fail_together():
            try:
                self._store.save(self._session, step)
            except OSError as error:
                if step == self._total_steps:
                    raise UserError(
                        f"--logdir: the last checkpoint, of step {step}, could not be saved "
                        f"({error}): make room and start again, to go on from the one before"
                    ) from error
                self._console.say(
                    f"step {step}: no checkpoint was saved ({error}); training goes on"
                )
                return
            self._status.set("running", step=step)

    def stop(self, step: int) -> None:
        """Ends the run early: saves, and says who asked. A collective."""
        self.save(step)
        reasons = enumerate(self._group.gather(self._stop.reason))
        rank, reason = next((rank, reason) for rank, reason in reasons if reason is not None)
        text = f"worker {rank} was {reason}"
        self._status.set("preempted", reason=f"step {step}: {text}")
        self._console.say(
            f"step {step}: stopped, since {text}; the same command goes on from the last checkpoint"
        )
        # Whoever ends first makes the launcher end the others: not before rank 0 is done.
        self._group.gather(step)

    def judge(self, step: int, metrics: train_step.StepMetrics) -> tuple[str, ...] | None:
        """Does what --on_nonfinite says after a step that was not applied. A collective.

        Args:
          step: its number.
          metrics: of it.

        Returns:
          None where the run goes on; where all workers are back at an earlier step, messages for
          the console about what was restored.

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
                messages = self._store.roll_back(self._session)
            self._session.run(self._train.broadcast_op)
            self._console.say(f"{reason}; all go back to the newest checkpoint, this once")
            return messages
        with self._watchdog.long_phase(f"saving step {step - 1}"), self._group.fail_together():
            saved = self._save_before(step)
        raise UserError(
            f"{reason}. Lower --base_learning_rate, lengthen --warmup_epochs, or see "
            f"--on_nonfinite. {saved}"
        )

    def _save_before(self, step: int) -> str:
        try:
            self._store.save_before(self._session, step)
        except OSError as error:
            return f"The state before it could not be saved ({error})"
        self._status.set("running", step=step - 1)
        return f"The state after step {step - 1} is saved"
