"""Takes each checkpoint of a run that goes on, before the run removes it."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.checkpoints import layout, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.process import files

_LOOK_SEC = 0.2


class Follower:
    """Gives the files of each new checkpoint a second name, in a folder removed at the end.

    A run keeps its newest checkpoints alone, and may make several while one is evaluated. A thread
    looks for new ones five times a second. What the files hold is not copied, unless the file
    system has no links.
    """

    def __init__(self, logdir: Path, done: Iterable[int]) -> None:
        """Prepares the folder.

        Args:
          logdir: folder of the run.
          done: steps whose checkpoints are not wanted.
        """
        self._logdir = logdir
        self._folder = files.temporary_path(logdir / layout.FOLLOWING)
        self._known = set(done)
        self._waiting: list[int] = []
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Takes new checkpoints until the end of the context."""
        thread = threading.Thread(target=self._run, name="follower", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_closed.set()
            thread.join()
            files.remove(self._folder)

    def _run(self) -> None:
        while not self._is_closed.wait(_LOOK_SEC):
            self.look()

    def look(self) -> None:
        """Takes the checkpoints that are there and were not."""
        # A file server that does not answer may do so the next time.
        with self._lock, contextlib.suppress(OSError):
            for step in sorted(set(layout.steps_in(str(self._logdir))) - self._known):
                if self._take(step):
                    self._known.add(step)
                    self._waiting.append(step)

    def _take(self, step: int) -> bool:
        """Gives a checkpoint's files a second name; returns False where they vanish meanwhile."""
        names = [path.name for path in layout.files_in(self._logdir, step=step)]
        self.drop(step)  # What an earlier attempt has left.
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            layout.link(names, source=self._logdir, target=self._folder)
        except OSError:
            return False
        # The index is removed first: where it is still there, nothing was removed before.
        return layout.is_prefix(layout.prefix_of(str(self._logdir), step))

    def take_next(self) -> tuple[int, str] | None:
        """Returns step and prefix of the oldest checkpoint that waits; None where none does."""
        with self._lock:
            if not self._waiting:
                return None
            step = self._waiting.pop(0)
        return step, layout.prefix_of(str(self._folder), step)

    def fault_in(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint that was taken; None where it is whole."""
        entry = checkpoint_manifest.read(self._logdir).find(step)
        if entry is None:
            return search.damage(layout.prefix_of(str(self._folder), step))
        return checkpoint_manifest.fault_in(self._folder, entry)

    def may_be_last(self, step: int) -> bool:
        """Returns whether a checkpoint may be that of the last step of the run that has made it.

        What a run's newest checkpoint is of comes into its manifest a moment after the checkpoint.
        """
        entry = checkpoint_manifest.read(self._logdir).find(step)
        if entry is None:
            return step >= max(layout.steps_in(str(self._logdir)), default=step)
        return step >= entry.run.total_steps

    def drop(self, step: int) -> None:
        """Removes the second names of a checkpoint that is no longer needed."""
        for path in layout.files_in(self._folder, step=step):
            files.remove(path)
