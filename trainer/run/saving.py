"""Saves a run's checkpoints beside its steps, one at a time; what ends a run waits for them."""

import functools
import time

import tensorflow.compat.v1 as tf1

from trainer.checkpoints.background import STEPS_HAVE_CORES_SHARE, BackgroundSave, Done
from trainer.checkpoints.snapshot import Shortage
from trainer.checkpoints.store import Store
from trainer.machine import session as machine_session
from trainer.safety.status import Status
from trainer.telemetry import tags
from trainer.telemetry.console import Console
from trainer.telemetry.writers.protocol import Writer

# A wait for the save before is told from the first on, and makes saves rarer where the second of
# them comes right after the first: a disk may be slow once.
_TOLD_SEC = 0.1
_LONG_SEC = 5.0
_LONG_WAITS = 2


class Saving:
    """The saves of one worker: its store's, in a thread or at once. Makes no collectives.

    Attributes:
      saved: the newest step whose checkpoint is on disk, as far as this worker knows: on those
        that keep nothing, the newest that was to be saved; None: there is none.
    """

    def __init__(
        self,
        store: Store,
        session: tf1.Session,
        console: Console,
        writer: Writer,
        status: Status,
        *,
        done: int | None,
        every_minutes: float = 0.0,
    ) -> None:
        """Saves nothing yet.

        Args:
          store: store of this worker.
          session: session that has the variables.
          console: gets messages about saves that wait, fail or are left out.
          writer: gets the durations of saves in the background.
          status: the run's status file, which tells the step of the newest checkpoint.
          done: the step at which the loop goes on, whose state counts as saved; None: it begins
            anew.
          every_minutes: value of --checkpoint_every_minutes.
        """
        self.saved = done
        self._store = store
        self._session = session
        self._console = console
        self._writer = writer
        self._status = status
        on_cpus = machine_session.step_device() == "/cpu:0"
        self._background = BackgroundSave(STEPS_HAVE_CORES_SHARE if on_cpus else 1.0)
        self._preparing = BackgroundSave()
        self._has_prepared = not store.keeps
        self._every_sec = 60 * every_minutes
        self._began_sec = time.monotonic()
        self._last_step = done or 0
        self._long_waits = 0
        self._left_out = 0
        self._has_told_memory = False
        self._has_told_shortage = False

    def is_due_by_time(self) -> bool:
        """Returns whether this worker's clock asks for a save, and none is under way."""
        if not (self._store.keeps and self._every_sec) or self._background.step is not None:
            return False
        return time.monotonic() - self._began_sec >= self._every_sec

    def finish_step(self, step: int) -> None:
        """Reports a save that has ended since the step before.

        After the first step, begins to prepare saves in a thread.
        """
        self._last_step = step
        if not self._has_prepared:
            self._has_prepared = True
            self._preparing.begin(step, functools.partial(self._store.prepare_copy, self._session))
        self._report(self._background.take(wait=False))

    def begin(self, step: int) -> None:
        """Begins to save the state after a step: copies it, and leaves the rest to a thread.

        Where a save is under way, waits for it; where that takes long again and again, leaves this
        one out. Where memory does not suffice for a copy, saves at once.

        Raises:
          OSError: it was saved at once, and could not be written.
        """
        if not self._store.keeps:
            self.saved = step
            return
        if not self._has_turn(step):
            return
        self._began_sec = time.monotonic()
        try:
            copied = self._store.copy(self._session, step)
        except Shortage as shortage:
            if not self._has_told_shortage:
                self._console.say(
                    f"step {step}: {shortage}: training waits for each save, as long as that is so"
                )
            self._has_told_shortage = True
            self._save(step)
            return

        def save() -> None:
            copied.save()
            self._status.set("running", step=step)

        if not self._has_told_memory:
            self._console.say(
                f"step {step}: checkpoints are saved in the background, each from a copy of the "
                f"variables: {copied.bytes / 1e6:.1f} MB of memory until it is on disk"
            )
        self._has_told_memory = True
        self._background.begin(step, save)

    def save(self, step: int) -> None:
        """Saves the state after a step, unless it is saved; it is on disk when this returns.

        Raises:
          OSError: it could not be written.
        """
        self.settle()
        if self.saved != step:
            self._save(step)

    def save_before(self, step: int) -> None:
        """Saves the state before a step that was counted, but whose update was not applied.

        Raises:
          OSError: it could not be written.
        """
        self.settle()
        self._store.save_before(self._session, step)
        if self._store.keeps:
            self._status.set("running", step=step - 1)

    def settle(self) -> None:
        """Waits for the save that is under way, if there is one, and reports it."""
        # What failed is done again, and raises its error, in the first copy or its save.
        self._preparing.take(wait=True)
        self._report(self._background.take(wait=True))

    def close(self) -> None:
        """Waits likewise, and tells how many saves were left out."""
        self.settle()
        if self._left_out:
            self._console.say(f"{self._left_out} checkpoints were left out: the disk is too slow")

    def _save(self, step: int) -> None:
        self._store.save(self._session, step)
        self.saved = step
        self._status.set("running", step=step)

    def _has_turn(self, step: int) -> bool:
        """Waits until no save is under way; returns whether the one of `step` is to be made."""
        before = self._background.step
        if before is None:
            self._long_waits = 0
        elif self._long_waits >= _LONG_WAITS:
            self._left_out += 1
            return False
        began_sec = time.monotonic()
        self.settle()
        waited_sec = time.monotonic() - began_sec
        if before is None or waited_sec < _TOLD_SEC:
            return True
        text = f"step {step}: waited {waited_sec:.1f} s for the save of step {before} to end"
        is_long = waited_sec >= _LONG_SEC
        if is_long and self._background.pauses:  # Perhaps it is these that were slow, not the disk.
            self._background.stop_pauses()
            text += ", which paused for the steps. From now on, saves make no pauses"
            is_long = False
        self._long_waits = self._long_waits + 1 if is_long else 0
        if self._long_waits == _LONG_WAITS:
            text += (
                ", again: the disk is slower than the saves. From now on, a checkpoint that is due "
                "while another is being saved is left out"
            )
        self._console.say(text)
        return True

    def _report(self, done: Done | None) -> None:
        """Reports a save of the background.

        Raises:
          BaseException: what it raised, where that was not an OSError.
        """
        if done is None:
            return
        if isinstance(done.error, OSError):
            self._console.say(
                f"step {done.step}: no checkpoint was saved ({done.error}); training goes on"
            )
            return
        if done.error is not None:
            raise done.error
        self.saved = done.step
        self._writer.write(
            max(done.step, self._last_step),
            {tags.CHECKPOINT_WRITE_MS: 1000 * done.duration_sec},
            wall_time=time.time(),
        )
