"""Locks a run's folder, by rank 0 for all workers of the run."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoints import layout
from trainer.distributed import Group
from trainer.process import files, streams
from trainer.safety.run_lock import create_run_lock
from trainer.safety.sudden_exit import within
from trainer.telemetry import step_profiler

# Their temporary names.
_OF_EARLIER_VERSIONS = re.compile(
    r"\.saving|\.profiling"
    r"|\.(status\.json|metrics\.jsonl|model\.json|checkpoints\.json|checkpoint|run\.lock|writable)"
    r"\.(.*\.)?\d+"
    r"|\.steps_.*\.gz\.\d+"
)


@contextlib.contextmanager
def hold(logdir: str | None, group: Group) -> Iterator[tuple[str, ...]]:
    """Locks a run's folder, by rank 0, for all of its workers. A collective.

    Yields:
      messages for the console about a stale lock that was removed.

    Raises:
      UserError: on all workers: another run holds the folder, or it can't be written.
    """
    with contextlib.ExitStack() as stack:
        lock = create_run_lock(logdir, rank=group.worker.rank, on_loss=_leave)
        with group.fail_together():
            messages = lock.take()
            stack.enter_context(contextlib.closing(lock))
        if logdir is not None and group.worker.rank == 0:
            _sweep(Path(logdir))
        yield messages


def _sweep(logdir: Path) -> None:
    """Removes the temporary files and folders of runs that were killed."""
    for folder in (logdir, logdir / layout.BEST, logdir / step_profiler.FOLDER):
        files.sweep(folder, earlier=_OF_EARLIER_VERSIONS)


def _leave(reason: str) -> None:
    """Ends a run that has lost its lock, before it writes into the folder again."""
    with contextlib.suppress(OSError):
        print(f"slim-horovod: --logdir: {reason}; this run ends", file=sys.stderr, flush=True)
    within(1.0, streams.drain)
    os._exit(1)
