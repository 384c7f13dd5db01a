"""Saves a run's checkpoints, keeps the newest and the best, and restores the run from them."""

import dataclasses
import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import changes, layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.manifest import BEST, Entry, Manifest, RunFacts
from trainer.checkpoints.search import Found
from trainer.config import RunConfig
from trainer.errors import UserError
from trainer.process import files as atomic_file


def _in_one_line(error: tf.errors.OpError) -> str:
    """What failed, without the graph's story around it."""
    _, node, rest = error.message.rpartition("Node: ")
    lines = (rest if node else error.message).splitlines()
    return lines[1 if node and len(lines) > 1 else 0].strip()


class Store:
    """Saves checkpoints into a folder and restores from them: rank 0's.

    Attributes:
      story: what `restore` did, for the console.
    """

    def __init__(
        self, config: RunConfig, logdir: str, variables: Sequence[tf.Variable], facts: RunFacts
    ) -> None:
        """Adds the operations that save to the default graph.

        Args:
          config: what to start from, and how many checkpoints to keep.
          logdir: the folder.
          variables: what to save and to restore, `global_step` among them.
          facts: of this run.
        """
        self._config = config
        self._logdir = Path(logdir)
        self._variables = variables
        self._facts = facts
        self._network = restore.network_variables()
        self._saver = tf1.train.Saver(variables, max_to_keep=None)
        self._is_left_alone = False
        self.story: tuple[str, ...] = ()

    def check_room(self) -> None:
        """Finds out before a run whether the disk has room for two checkpoints: old and new.

        Raises:
          UserError: it has not.
        """
        one_bytes = sum(v.shape.num_elements() * v.dtype.size for v in self._variables)
        free_bytes = shutil.disk_usage(self._logdir).free
        if free_bytes < 2 * one_bytes:
            raise UserError(
                f"--logdir: must have room for two checkpoints of {one_bytes / 1e6:.0f} MB, got "
                f"{free_bytes / 1e6:.0f} MB in {self._logdir}. Make room, or choose another folder"
            )

    def restore(self, session: tf1.Session) -> None:
        """Loads what the run goes on from: the newest good checkpoint, or --init_checkpoint.

        Raises:
          UserError: --resume forbids what is there, or a checkpoint can't be loaded.
        """
        found = search.find_newest(str(self._logdir))
        if found.prefix is not None and self._config.resume == "never":
            raise UserError(
                f"--resume: must not be never where --logdir has a checkpoint, got {found.prefix}"
            )
        if found.prefix is None and self._config.resume == "must":
            raise UserError(
                f"--resume: must not be must where --logdir has no checkpoint, got {self._logdir}"
            )
        if found.prefix is None:
            started = restore.initialize(session, self._config.init_checkpoint, self._network)
            self.story = (*found.skipped, *started)
        else:
            self._load(session, found, found.prefix)

    def roll_back(self, session: tf1.Session) -> None:
        """Loads the newest good checkpoint in the middle of a run.

        Raises:
          UserError: there is none.
        """
        found = search.find_newest(str(self._logdir))
        if found.prefix is None:
            raise UserError("--on_nonfinite: rollback needs a checkpoint to go back to, got none")
        self._load(session, found, found.prefix)

    def _load(self, session: tf1.Session, found: Found, prefix: str) -> None:
        restore.restore(session, prefix, self._variables)
        story = [*found.skipped, f"resumed from {prefix}"]
        if found.entry is not None:
            before = found.entry.run
            story += changes.describe(before, self._facts)
            if before.global_batch_size != self._facts.global_batch_size:
                was_complete = found.entry.step >= before.total_steps
                if was_complete and changes.is_as_long(before, self._facts):
                    self._set_step(session, self._facts.total_steps)  # And so it stays.
                    self._is_left_alone = True
                else:
                    story.append(self._renumber(session, found.entry))
        self.story = tuple(story)

    def _renumber(self, session: tf1.Session, entry: Entry) -> str:
        """Counts steps anew where they have another size than when the checkpoint was made.

        The run goes on at the same example; its checkpoint is saved under the new number at once,
        and those whose old numbers are greater go, so that the greatest number is the newest.
        """
        size = self._facts.global_batch_size
        step, again = divmod(entry.examples, size)
        self._set_step(session, step)
        try:
            self._put(session, step)
        except OSError as error:
            raise UserError(
                f"--logdir: the checkpoint of step {entry.step} must be saved again as step "
                f"{step}, since steps have another size now; that failed ({error})"
            ) from error
        self._prune(step, newer_too=True)
        repeated = f", {again} of which are seen again" if again else ""
        return (
            f"steps have {size} examples instead of {entry.run.global_batch_size}: step "
            f"{entry.step} is step {step} now, after {entry.examples} examples{repeated}; the "
            "schedule is recomputed"
        )

    def save(self, session: tf1.Session, step: int) -> None:
        """Saves a checkpoint: written, read back, synced, renamed; then removes the oldest.

        Raises:
          OSError: it could not be written; the earlier ones are still there.
        """
        self._put(session, step)
        self._prune(step, newer_too=False)

    def _put(self, session: tf1.Session, step: int) -> None:
        temporary = self._write_temporary(session, step)
        try:
            # What the manifest says of an earlier checkpoint of this step is no longer so.
            manifest = checkpoint_manifest.read(self._logdir)
            if manifest.find(step) is not None:
                checkpoint_manifest.write(self._logdir, manifest.without(step))
            files = layout.move(temporary, self._logdir)
            entry = self._create_entry(step, files)
            checkpoint_manifest.write(self._logdir, manifest.with_entry(entry))
        finally:
            atomic_file.remove(temporary)

    def save_before(self, session: tf1.Session, step: int) -> None:
        """Saves the state before a step that was counted, but not applied.

        Raises:
          OSError: it could not be written.
        """
        if step - 1 not in layout.steps_in(str(self._logdir)):
            self._set_step(session, step - 1)
            self.save(session, step - 1)

    def _set_step(self, session: tf1.Session, step: int) -> None:
        counter = next(v for v in self._variables if v.op.name == "global_step")
        restore.assign(session, [(counter, step)])

    def _write_temporary(self, session: tf1.Session, step: int) -> Path:
        """Writes and verifies the files in a folder of their own."""
        temporary = layout.create_temporary_folder(self._logdir)
        try:
            prefix = layout.prefix_of(str(temporary), step)
            with session.graph.as_default():  # In another one, the saver would build itself anew.
                self._saver.save(session, prefix, write_meta_graph=False, write_state=False)
            reason = search.damage(prefix)
            if reason is not None:
                raise OSError(f"it reads back damaged: {reason}")
            for path in temporary.iterdir():
                atomic_file.sync(path)
        except (OSError, tf.errors.OpError) as error:
            atomic_file.remove(temporary)
            if isinstance(error, OSError):
                raise
            raise OSError(_in_one_line(error)) from error
        return temporary

    def _create_entry(self, step: int, files: Sequence[checkpoint_manifest.SavedFile]) -> Entry:
        examples = step * self._facts.global_batch_size
        return Entry(
            step=step,
            epoch=examples / self._facts.train_examples,
            examples=examples,
            saved_at=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
            files=tuple(files),
            run=self._facts,
        )

    def _prune(self, step: int, *, newer_too: bool) -> None:
        """Removes what is older than the newest few, of which `step` is the newest.

        Where there are greater numbers, they are of damaged checkpoints, which were skipped and
        stay until the run comes to their steps, or of another numbering: `newer_too`.
        """
        steps = layout.steps_in(str(self._logdir))
        kept = [old for old in steps if old <= step][: self._config.keep_checkpoints]
        left = [*kept, *(newer for newer in steps if newer > step and not newer_too)]
        for removed in set(steps) - set(left):
            # The index goes first: without it a checkpoint is not there.
            for path in sorted(self._logdir.glob(f"model.ckpt-{removed}.*"), reverse=True):
                path.unlink(missing_ok=True)
        manifest = checkpoint_manifest.read(self._logdir)
        gone = [entry.step for entry in manifest.entries if entry.step not in left]
        if gone:
            checkpoint_manifest.write(self._logdir, manifest.without(*gone))
        layout.write_state(self._logdir, kept)

    def lacks_evaluation(self, step: int) -> bool:
        """Whether the run ended between the checkpoint of a step and the evaluation after it."""
        if self._is_left_alone:  # The entry of that number is of another step.
            return False
        entry = checkpoint_manifest.read(self._logdir).find(step)
        return entry is not None and entry.top1 is None

    def note_evaluation(self, session: tf1.Session, step: int, top1: float) -> None:
        """Notes an evaluation's result, and keeps the best checkpoint apart.

        Args:
          session: whose variables were evaluated.
          step: after which they were.
          top1: share of the validation examples that were classified right.

        Raises:
          OSError: it could not be written.
        """
        manifest = checkpoint_manifest.read(self._logdir)
        entry = manifest.find(step)
        best = checkpoint_manifest.read(self._logdir / BEST).entries
        if not best or best[-1].top1 is None or top1 > best[-1].top1:
            self._keep_best(session, step, top1, entry)
        if entry is not None:  # Noted last: before, a restart evaluates it again.
            entry = dataclasses.replace(entry, top1=top1)
            checkpoint_manifest.write(self._logdir, manifest.with_entry(entry))

    def _keep_best(self, session: tf1.Session, step: int, top1: float, entry: Entry | None) -> None:
        folder = self._logdir / BEST
        if entry is None:
            temporary = self._write_temporary(session, step)
        else:
            temporary = layout.link(self._logdir, entry)
        try:
            folder.mkdir(exist_ok=True)
            files = layout.move(temporary, folder)
        finally:
            atomic_file.remove(temporary)
        best = dataclasses.replace(self._create_entry(step, files), top1=top1)
        checkpoint_manifest.write(folder, Manifest((best,)))
        layout.write_state(folder, [step])
        kept = {file.name for file in files}
        for path in folder.glob("model.ckpt-*"):
            if path.name not in kept:
                path.unlink(missing_ok=True)
