"""Locks a run's folder, by rank 0 for all workers of the run."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoints import layout
from trainer.distributed import Group
from trainer.process import files, streams, texts
from trainer.safety import lock_holder
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
        yield (*messages, *_describe_sharing(logdir, group))


def _describe_sharing(logdir: str | None, group: Group) -> tuple[str, ...]:
    """Returns a line where hosts do not see the folder that worker 0 has locked. A collective."""
    worker = group.worker
    if logdir is None or worker.local_size == worker.size:
        return ()
    path = Path(logdir, lock_holder.FILE_NAME)
    try:
        holder, _ = lock_holder.read(path)
    except OSError:
        holder = None
    seen = group.gather((os.uname().nodename, None if holder is None else str(holder)))
    host, first = seen[0]
    others = sorted({name for name, each in seen if name != host and each != first})
    if not others:
        return ()
    return (
        f"--logdir: {texts.printable(logdir)} is not shared: {', '.join(others)} do not see what "
        f"worker 0 writes there on {host}. Only worker 0 writes and reads it, so that nothing is "
        f"lost; but whoever goes on with the run must start worker 0 on {host} again",
    )


def _sweep(logdir: Path) -> None:
    """Removes the temporary files and folders of runs that were killed."""
    # What a follower has taken is of this run, unless it begins anew.
    shared = layout.FOLLOWING if layout.steps_in(str(logdir)) else None
    for folder in (logdir, logdir / layout.BEST, logdir / step_profiler.FOLDER):
        files.sweep(folder, earlier=_OF_EARLIER_VERSIONS, shared=shared)


def _leave(reason: str) -> None:
    """Ends a run that has lost its lock, before it writes into the folder again."""
    with contextlib.suppress(OSError):
        print(f"slim-horovod: --logdir: {reason}; this run ends", file=sys.stderr, flush=True)
    within(1.0, streams.drain)
    os._exit(1)
