"""A run's folder, held by rank 0 for all workers of the run."""

import contextlib
import os
import sys
from collections.abc import Iterator

from trainer.distributed import Group
from trainer.safety import leftovers
from trainer.safety.run_lock import create_run_lock


@contextlib.contextmanager
def hold(logdir: str | None, group: Group) -> Iterator[tuple[str, ...]]:
    """Holds a run's folder, by rank 0, for all of its workers. A collective.

    Yields:
      what there is to tell of a stale lock, for the console.

    Raises:
      UserError: on all workers: another run has the folder, or it can't be written.
    """
    with contextlib.ExitStack() as stack:
        with group.fail_together():
            lock = create_run_lock(logdir, rank=group.worker.rank, on_loss=_leave)
            stack.enter_context(contextlib.closing(lock))
        leftovers.remove(logdir, rank=group.worker.rank)
        yield lock.story


def _leave(reason: str) -> None:
    """Ends a run that has lost its folder, before it writes into it once more."""
    with contextlib.suppress(OSError):
        print(f"slim-horovod: --logdir: {reason}; this run ends", file=sys.stderr, flush=True)
    os._exit(1)
