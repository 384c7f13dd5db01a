"""Saves a run's checkpoints, keeps the newest and the best, and restores the run from them."""

import contextlib
import dataclasses
import datetime
import functools
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import exit_status
from trainer.checkpoints import best, changes, layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.bundle import BundleWriter, GraphWriter
from trainer.checkpoints.manifest import Entry, Manifest, RunFacts, SavedFile
from trainer.checkpoints.search import Found
from trainer.checkpoints.snapshot import Copied, Snapshot
from trainer.checkpoints.warm_start import WarmStart
from trainer.config import RunConfig
from trainer.errors import UserError
from trainer.process import files, texts

# Writes the variables into a checkpoint whose prefix it is given.
_Write = Callable[[str], object]


class FolderStore:
    """The store of rank 0 with --logdir: see `store.Store`."""

    keeps = True

    def __init__(
        self,
        config: RunConfig,
        logdir: str,
        variables: Sequence[tf.Variable],
        facts: RunFacts,
        start: WarmStart,
    ) -> None:
        """Adds the operations that save to the default graph.

        Args:
          config: whether to resume, and how many checkpoints to keep.
          logdir: the folder.
          variables: the variables to save and to restore, `global_step` among them.
          facts: facts about this run.
          start: the start of a run that does not resume.
        """
        self._config = config
        self._logdir = Path(logdir)
        self._variables = variables
        self._facts = facts
        self._start = start
        self._direct = GraphWriter(variables)
        self._snapshot = Snapshot(variables)
        self._bundle = BundleWriter(variables)
        self._writing = threading.Lock()  # Of the folder's checkpoints and of the manifest.
        self._is_left_alone = False
        self._damaged: set[int] = set()  # Steps of checkpoints that were passed over.

    def check_room(self) -> None:
        one_bytes = self._snapshot.bytes
        free_bytes = shutil.disk_usage(self._logdir).free
        # A new one is written before an old one is removed.
        has_all = len(layout.steps_in(str(self._logdir))) >= self._config.keep_checkpoints
        number, needed = ("one checkpoint", 1) if has_all else ("two checkpoints", 2)
        if free_bytes < needed * one_bytes:
            raise UserError(
                f"--logdir: must have room for {number} of {one_bytes / 1e6:.0f} MB, got "
                f"{free_bytes / 1e6:.0f} MB in {self._logdir}. Make room, or choose another folder",
                status=exit_status.FAILED,
            )

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
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
            return (*found.skipped, *self._start.load(session))
        return self._load(session, found, found.prefix)

    def roll_back(self, session: tf1.Session) -> tuple[str, ...] | None:
        found = search.find_newest(str(self._logdir))
        if found.prefix is None:
            return None
        return self._load(session, found, found.prefix)

    def _load(self, session: tf1.Session, found: Found, prefix: str) -> tuple[str, ...]:
        try:
            restore.restore(session, prefix, self._variables)
        except UserError as error:
            flags = changes.list_flags(found.entry.run, self._facts) if found.entry else []
            if not flags:
                raise
            # They say better than names of variables what to do.
            text = f"{error}. Flags that have changed since: {', '.join(flags)}"
            raise UserError(text, status=error.status) from error
        self._damaged = set(found.damaged)
        messages = [*found.skipped, f"resumed from {prefix}"]
        entry = found.entry or self._describe_anew(found.step)
        if entry is None:
            messages.append(
                f"{layout.MANIFEST} does not tell of it: its steps are taken to be of "
                f"{self._facts.global_batch_size} examples, as now"
            )
            return tuple(messages)
        before = entry.run
        messages += changes.describe(before, self._facts)
        if before.global_batch_size != self._facts.global_batch_size:
            was_complete = entry.step >= before.total_steps
            if was_complete and changes.is_as_long(before, self._facts):
                self._set_step(session, self._facts.total_steps)  # It stays complete.
                self._is_left_alone = True
            else:
                messages.append(self._renumber(session, entry))
        return tuple(messages)

    def take_over(self, before: object) -> None:
        if isinstance(before, FolderStore):
            self._damaged, self._is_left_alone = before._damaged, before._is_left_alone

    def _describe_anew(self, step: int) -> Entry | None:
        """Writes the entry that a checkpoint lacks, since its save was killed just before.

        Steps get another size only together with an entry, so that they have that of the newest
        entry before. Returns None where there is none.
        """
        manifest = checkpoint_manifest.read(self._logdir)
        earlier = [entry for entry in manifest.entries if entry.step < step]
        if not earlier:
            return None
        paths = sorted(layout.files_in(self._logdir, step=step))
        saved = tuple(checkpoint_manifest.describe_file(path) for path in paths)
        entry = self._create_entry(step, saved, facts=earlier[-1].run)
        with contextlib.suppress(OSError):  # Then it is made again at the next start.
            checkpoint_manifest.write(self._logdir, manifest.with_entry(entry))
        return entry

    def _renumber(self, session: tf1.Session, entry: Entry) -> str:
        """Renumbers the current step where steps have another size than in the checkpoint.

        The run continues at the same example. Its checkpoint is saved under the new number at once,
        and those with greater numbers are removed, so that the greatest number is the newest.
        """
        size = self._facts.global_batch_size
        step, again = divmod(entry.examples, size)
        self._set_step(session, step)
        try:
            self._save(step, self._writer_of(session), newer_too=True)
        except OSError as error:
            raise UserError(
                f"--logdir: the checkpoint of step {entry.step} must be saved again as step "
                f"{step}, since steps have another size now; that failed ({error})",
                status=exit_status.FAILED,
            ) from error
        repeated = f", {again} of which are seen again" if again else ""
        return (
            f"steps have {size} examples instead of {entry.run.global_batch_size}: step "
            f"{entry.step} is step {step} now, after {entry.examples} examples{repeated}; the "
            "schedule is recomputed"
        )

    def save(self, session: tf1.Session, step: int) -> None:
        self._save(step, self._writer_of(session))

    def prepare_copy(self, session: tf1.Session) -> None:
        self._snapshot.prepare(session)
        self._bundle.prepare()

    def copy(self, session: tf1.Session, step: int) -> Copied:
        write = functools.partial(self._bundle.write, values=self._snapshot.take(session))
        return Copied(self._snapshot.bytes, functools.partial(self._save, step, write))

    def _writer_of(self, session: tf1.Session) -> _Write:
        """Returns the function that writes a session's variables, of which it makes no copy."""
        return functools.partial(self._direct.write, session)

    def _save(self, step: int, write: _Write, *, newer_too: bool = False) -> None:
        with self._writing:
            self._put(step, write)
            self._prune(step, newer_too=newer_too)

    def _put(self, step: int, write: _Write) -> None:
        with layout.temporary_folder(self._logdir) as temporary:
            saved = self._write(step, write, temporary)
            # The entry of an earlier checkpoint of this step would no longer be true.
            manifest = checkpoint_manifest.read(self._logdir)
            if manifest.find(step) is not None:
                checkpoint_manifest.write(self._logdir, manifest.without(step))
            layout.move(temporary, self._logdir)
        self._damaged.discard(step)
        entry = self._create_entry(step, saved)
        checkpoint_manifest.write(self._logdir, manifest.with_entry(entry))

    def save_before(self, session: tf1.Session, step: int) -> None:
        if step - 1 not in set(layout.steps_in(str(self._logdir))) - self._damaged:
            self._set_step(session, step - 1)
            self.save(session, step - 1)

    def _set_step(self, session: tf1.Session, step: int) -> None:
        counter = next(v for v in self._variables if v.op.name == "global_step")
        restore.assign(session, [(counter, step)])

    def _write(self, step: int, write: _Write, folder: Path) -> tuple[SavedFile, ...]:
        """Writes a checkpoint into a folder, reads it back and syncs it; returns its files.

        Raises:
          OSError: it could not be written, or it reads back damaged.
        """
        prefix = layout.prefix_of(str(folder), step)
        try:
            write(prefix)
            reason = self._bundle.damage(prefix)
        except tf.errors.OpError as error:
            raise OSError(texts.first_line(error)) from error
        if reason is not None:
            raise OSError(f"it reads back damaged: {reason}")
        for path in folder.iterdir():
            files.sync(path)
        return checkpoint_manifest.describe_files(folder)

    def _create_entry(
        self,
        step: int,
        saved: tuple[SavedFile, ...],
        *,
        top1: float | None = None,
        facts: RunFacts | None = None,
    ) -> Entry:
        facts = facts or self._facts
        examples = step * facts.global_batch_size
        return Entry(
            step=step,
            epoch=examples / facts.train_examples,
            examples=examples,
            saved_at=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
            files=saved,
            run=facts,
            top1=top1,
        )

    def _prune(self, step: int, *, newer_too: bool) -> None:
        """Removes all but the newest few checkpoints, counted back from `step`.

        Args:
          step: step of the newest checkpoint.
          newer_too: whether checkpoints with greater numbers are removed as well: they are of
            another numbering. Otherwise they are damaged ones, which were skipped and stay until
            the run comes to their steps.
        """
        steps = layout.steps_in(str(self._logdir))
        good = [old for old in steps if old <= step and old not in self._damaged]
        kept = good[: self._config.keep_checkpoints]
        # A process that was killed between two renames left data without an index.
        found = layout.steps_with_files(self._logdir)
        left = [*kept, *(newer for newer in found if newer > step and not newer_too)]
        for removed in set(found) - set(left):
            # The index goes first: without it a checkpoint is not there.
            for path in layout.files_in(self._logdir, step=removed):
                path.unlink(missing_ok=True)
        manifest = checkpoint_manifest.read(self._logdir)
        gone = [entry.step for entry in manifest.entries if entry.step not in left]
        if gone:
            checkpoint_manifest.write(self._logdir, manifest.without(*gone))
        layout.write_state(self._logdir, kept)

    def _entry_of(self, step: int, manifest: Manifest) -> Entry | None:
        """Returns the entry of a step; None where it is about other weights than this run's."""
        if self._is_left_alone or step in self._damaged:
            return None
        return manifest.find(step)

    def lacks_evaluation(self, step: int) -> bool:
        entry = self._entry_of(step, checkpoint_manifest.read(self._logdir))
        return entry is not None and entry.top1 is None

    def top1_after(self, step: int) -> float | None:
        entry = self._entry_of(step, checkpoint_manifest.read(self._logdir))
        return None if entry is None else entry.top1

    def note_evaluation(self, session: tf1.Session, step: int, top1: float) -> None:
        with self._writing:
            manifest = checkpoint_manifest.read(self._logdir)
            entry = self._entry_of(step, manifest)
            if best.is_beaten(self._logdir, top1=top1):
                self._keep_best(session, step, top1, entry)
            if entry is not None:  # Last: after a failure above, a restart evaluates it again.
                entry = dataclasses.replace(entry, top1=top1)
                checkpoint_manifest.write(self._logdir, manifest.with_entry(entry))

    def _keep_best(self, session: tf1.Session, step: int, top1: float, entry: Entry | None) -> None:
        """Makes the checkpoint of a step the best; writes one where the step has no good one."""
        with layout.temporary_folder(self._logdir) as temporary:
            is_good = (
                entry is not None and checkpoint_manifest.fault_in(self._logdir, entry) is None
            )
            if entry is not None and is_good:
                names = [file.name for file in entry.files]
                layout.link(names, source=self._logdir, target=temporary)
                saved = entry.files
            else:
                saved = self._write(step, self._writer_of(session), temporary)
            best.replace(self._logdir, self._create_entry(step, saved, top1=top1), temporary)
