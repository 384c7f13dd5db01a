"""A run as known to a process that evaluates the run's checkpoints beside it."""

import time
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoints import layout
from trainer.checkpoints.follow import Follower
from trainer.errors import UserError
from trainer.safety import lock_holder, status
from trainer.telemetry.writers import metrics_lines

# A run that has not finished, and of which no process is left, may be started again.
_PATIENCE_SEC = 60.0
_LOOK_SEC = 1.0


class FollowedRun:
    """A run in whose folder another process, or one to be started, saves checkpoints."""

    def __init__(self, logdir: Path, *, patience_sec: float = _PATIENCE_SEC) -> None:
        """Begins to watch.

        Args:
          logdir: folder of the run.
          patience_sec: how long to wait for a run of which no process is left, or for the first.
        """
        self._logdir = logdir
        self._patience_sec = patience_sec
        self._lock = lock_holder.Watch(logdir)
        self._metrics = logdir / metrics_lines.NAME

    def checkpoints(self, follower: Follower) -> Iterator[tuple[int, str]]:
        """Yields step and prefix of each new checkpoint, until the run has ended.

        Raises:
          UserError: no run has begun.
        """
        ended_sec: float | None = None
        while True:
            follower.look()
            found = follower.take_next()
            if found is not None:
                yield found
                continue
            if self._is_finished() and not self._lock.may_be_alive():
                follower.look()  # It may have saved between the two looks.
                if (found := follower.take_next()) is None:
                    return
                yield found
            elif self._lock.may_be_alive():  # Also one that is complete, and made longer.
                ended_sec = None
            else:
                now_sec = time.monotonic()
                ended_sec = now_sec if ended_sec is None else ended_sec
                if now_sec - ended_sec > self._patience_sec:
                    self._check_begun()
                    return
            time.sleep(_LOOK_SEC)

    def wait_until_left(self, step: int) -> None:
        """Waits until the run has gone on after a step, or has ended: it may evaluate the step."""
        while self._goes_on() and not self._has_left(step):
            time.sleep(_LOOK_SEC)

    def evaluated_steps(self, tag: str) -> set[int]:
        """Returns the steps that have an accuracy under `tag`, whoever has evaluated them."""
        return metrics_lines.steps_with(self._metrics, tag)

    def _has_left(self, step: int) -> bool:
        # Not by the checkpoints that are there: to the step of a damaged one, the run comes again.
        saved = status.read(self._logdir).step
        return max(saved, metrics_lines.last_step(self._metrics)) > step

    def _goes_on(self) -> bool:
        """Returns whether the run is not complete and has a process, as far as can be known."""
        return not self._is_finished() and self._lock.may_be_alive()

    def _is_finished(self) -> bool:
        return status.read(self._logdir).state == "finished"

    def _check_begun(self) -> None:
        if status.read(self._logdir).state is None and not layout.steps_in(str(self._logdir)):
            raise UserError(
                f"--logdir: no run has begun in {self._logdir} for {self._patience_sec:.0f} s. "
                "Check the path, or start the run first"
            )
