"""Takes each checkpoint of a run that goes on, before the run removes it."""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Iterator, Set
from pathlib import Path

from trainer.checkpoints import best, layout, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.manifest import Entry, Manifest
from trainer.process import files

# A folder's time of change is asked for often, since that is cheap. It is not trusted alone: it has
# ticks, and a file server may tell of a change late.
_ASK_SEC = 0.01
_LOOK_SEC = 0.2


class Follower:
    """Gives the files of each new checkpoint a second name, in a folder removed at the end.

    A run keeps its newest checkpoints alone, and may make several while one is evaluated. A thread
    looks for new ones as soon as the folder has changed. What the files hold is not copied, unless
    the file system has no links. What a follower took that was killed, the next one has too.
    """

    def __init__(self, logdir: Path) -> None:
        """Prepares the folder.

        Args:
          logdir: folder of the run.
        """
        self._logdir = logdir
        self._folder = files.temporary_path(logdir / layout.FOLLOWING)
        self._known: dict[int, tuple[int, int]] = {}  # What tells a checkpoint from a later one.
        self._entries: dict[int, Entry] = {}
        self._waiting: list[int] = []
        self._in_use: int | None = None
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Takes new checkpoints until the end of the context."""
        with contextlib.suppress(OSError):
            self._adopt()
        thread = threading.Thread(target=self._run, name="follower", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_closed.set()
            thread.join()
            files.remove(self._folder)

    def _adopt(self) -> None:
        """Takes what followers have left that were killed; the run may have removed it since.

        Where the run has no checkpoint, it is of another run that was in the folder.
        """
        is_of_run = bool(layout.steps_in(str(self._logdir)))
        for folder in files.abandoned(self._logdir / layout.FOLLOWING):
            left = layout.steps_in(str(folder)) if is_of_run else []
            taken = set()
            for step in left:
                # What a file server does not give now, it may give the next follower.
                with contextlib.suppress(OSError):
                    if self._take(step, folder):
                        taken.add(step)
            self._waiting += sorted(taken - set(self._waiting))
            with contextlib.suppress(OSError):
                self._describe(folder, taken)
            if all(step in self._known for step in left):
                files.remove(folder)
        self._waiting.sort()

    def _run(self) -> None:
        seen, looked_sec = None, -math.inf
        while not self._is_closed.wait(_ASK_SEC):
            changed, now_sec = _time_of_change(self._logdir), time.monotonic()
            if changed != seen or now_sec - looked_sec >= _LOOK_SEC:
                seen, looked_sec = changed, now_sec
                self.look()

    def look(self) -> None:
        """Takes the checkpoints that are there and were not, or were saved again."""
        # A file server that does not answer may do so the next time.
        with self._lock, contextlib.suppress(OSError):
            for step in sorted(layout.steps_in(str(self._logdir))):
                if self._take(step, self._logdir) and step not in self._waiting:
                    self._waiting.append(step)
            held = [*self._waiting, *([] if self._in_use is None else [self._in_use])]
            self._describe(self._logdir, set(held) - self._entries.keys())

    def _describe(self, folder: Path, steps: Set[int]) -> None:
        """Keeps what a folder's manifest has of some steps: the run drops it with the checkpoint.

        Raises:
          OSError: it can't be written for the next follower.
        """
        entries = checkpoint_manifest.read(folder).entries if steps else ()
        found = {entry.step: entry for entry in entries if entry.step in steps}
        if found:
            self._entries |= found
            known = tuple(self._entries[step] for step in sorted(self._entries))
            checkpoint_manifest.write(self._folder, Manifest(known))

    def _take(self, step: int, source: Path) -> bool:
        """Gives a checkpoint's files a second name; returns whether it is one to evaluate.

        It is not where it is known, and where its files vanish meanwhile, or can't be linked.
        """
        identity = _identity_of(source, step)
        if identity is None or self._known.get(step) == identity or step == self._in_use:
            return False
        names = [path.name for path in layout.files_in(source, step=step)]
        self._remove(step)  # A checkpoint that is replaced.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            layout.link(names, source=source, target=self._folder)
            # The index is removed first: where it is still there, nothing was removed before.
            if _identity_of(source, step) == identity:
                self._known[step] = identity
                return True
        self._remove(step)
        self._known.pop(step, None)
        self._waiting = [each for each in self._waiting if each != step]
        return False

    def take_next(self) -> tuple[int, str] | None:
        """Returns step and prefix of the oldest checkpoint that waits; None where none does.

        Its files stay until `drop`.
        """
        with self._lock:
            if not self._waiting:
                return None
            self._in_use = step = self._waiting.pop(0)
        return step, layout.prefix_of(str(self._folder), step)

    def fault_in(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint that was taken; None where it is whole."""
        entry = self._entries.get(step)
        if entry is None:
            return search.damage(layout.prefix_of(str(self._folder), step))
        return checkpoint_manifest.fault_in(self._folder, entry)

    def keep_if_best(self, step: int, top1: float) -> None:
        """Makes a checkpoint that was taken the run's best one, where its accuracy is the greatest.

        Raises:
          OSError: it could not be written.
        """
        entry = self._entries.get(step)
        if entry is None or not best.is_beaten(self._logdir, top1=top1):
            return
        with layout.temporary_folder(self._logdir) as temporary:
            names = [file.name for file in entry.files]
            layout.link(names, source=self._folder, target=temporary)
            best.replace(self._logdir, dataclasses.replace(entry, top1=top1), temporary)

    def drop(self, step: int) -> None:
        """Removes the second names of a checkpoint that is no longer needed."""
        with self._lock:
            self._remove(step)
            self._in_use = None

    def _remove(self, step: int) -> None:
        self._entries.pop(step, None)
        for path in layout.files_in(self._folder, step=step):
            files.remove(path)


def _time_of_change(folder: Path) -> int | None:
    """Returns when a name in a folder has changed; None where it can't be asked."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def _identity_of(folder: Path, step: int) -> tuple[int, int] | None:
    """Returns what tells the files of a checkpoint from others of the step; None: it is gone."""
    try:
        status = Path(f"{layout.prefix_of(str(folder), step)}.index").stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
