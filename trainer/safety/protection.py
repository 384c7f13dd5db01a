"""Protects one worker while it trains: signals, the watchdog, and the watch of its launcher."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from trainer.config import RunConfig
from trainer.distributed import Worker
from trainer.process import launcher
from trainer.safety.orphan_watch import OrphanWatch
from trainer.safety.preemption import StopRequest
from trainer.safety.status import Status
from trainer.safety.sudden_exit import SuddenExit
from trainer.safety.watchdog import Watchdog, create_watchdog


class Protection(NamedTuple):
    """The parts of a worker's protection that the training loop uses.

    Attributes:
      stop: the request to stop this worker.
      watchdog: the watchdog, which is told of every step.
    """

    stop: StopRequest
    watchdog: Watchdog


@contextlib.contextmanager
def protect(config: RunConfig, status: Status, worker: Worker) -> Iterator[Protection]:
    """Protects what is done inside. Must be entered in the main thread, which gets the signals."""
    exit_now = SuddenExit(status, rank=worker.rank, size=worker.size)
    stop = StopRequest(exit_now)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.listen())
        watchdog = create_watchdog(config.watchdog_seconds, exit_now)
        stack.enter_context(contextlib.closing(watchdog))
        if launcher.find() is not None:
            stack.enter_context(contextlib.closing(OrphanWatch(stop, exit_now)))
        yield Protection(stop, watchdog)


@contextlib.contextmanager
def watch(config: RunConfig, worker: Worker) -> Iterator[Watchdog]:
    """Watches what is not training, and has neither a folder nor anything to save.

    Args:
      config: flags of the run, with the limit of a step.
      worker: this worker.

    Yields:
      the watchdog; `finish_step` is to be called after every step of what is done inside.
    """
    exit_now = SuddenExit(Status(None, rank=worker.rank), rank=worker.rank, size=worker.size)
    with contextlib.closing(create_watchdog(config.watchdog_seconds, exit_now)) as watchdog:
        yield watchdog
