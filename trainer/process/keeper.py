"""Gives a worker time to save when horovodrun ends it, also where it has taken its shell's place.

horovodrun ends a worker in three steps: it sends SIGTERM to the children of the shell that it
started, waits 5 seconds, and sends SIGKILL. Where /bin/sh is bash, that shell has replaced itself
by the worker, which has no children and is killed at once, without a save. Therefore the worker
runs as the child of a process that only waits for it.
"""

import os
import signal
from collections.abc import Iterable, Mapping

from trainer.process import identity, launcher

# What asks a run to save and to stop; see `unless_nohup`.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def unless_nohup(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Returns signals without SIGHUP where it is ignored.

    So `nohup` asks that a program outlives its terminal; a handler would undo that.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (ignored and number == signal.SIGHUP)]


def is_needed(environ: Mapping[str, str], parent: int) -> bool:
    """Returns whether horovodrun started this process directly, without a shell that waits.

    Args:
      environ: environment of this process.
      parent: process number of its parent.
    """
    launched = launcher.find(environ)
    by_horovodrun = launched is not None and launched.name == "horovodrun"
    return by_horovodrun and not identity.is_shell(parent)


def stay_behind() -> None:
    """Forks where it is needed: the child returns, the parent waits and exits as the child does.

    Must be called before there are other threads, and before TensorFlow is loaded.
    """
    if not is_needed(os.environ, os.getppid()):
        return
    worker = os.fork()
    if worker == 0:
        return
    for number in unless_nohup(STOP_SIGNALS):
        signal.signal(number, lambda number, _: os.kill(worker, number))
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    os._exit(status if status >= 0 else 128 - status)
