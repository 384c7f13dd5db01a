"""Gives a worker the seconds that horovodrun grants, also where its shell does not stay.

horovodrun ends a worker in three steps: SIGTERM to the children of the shell that it started,
5 seconds of patience, SIGKILL. Where /bin/sh is bash, that shell has become the worker itself: it
has no children, and is stopped at once, unsaved. So the worker becomes the child of a process that
only waits for it.
"""

import os
import signal
from collections.abc import Mapping

from trainer.process import identity, launcher

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def is_needed(environ: Mapping[str, str], parent: int) -> bool:
    """Whether this process is the one that horovodrun has started itself.

    Args:
      environ: of this process.
      parent: the number of its parent.
    """
    launched = launcher.find(environ)
    by_horovodrun = launched is not None and launched.name == "horovodrun"
    return by_horovodrun and not identity.is_shell(parent)


def stay_behind() -> None:
    """Returns in a new process, where that is needed; this one waits, and ends as that one does.

    To be called before there are other threads, and before TensorFlow is loaded.
    """
    if not is_needed(os.environ, os.getppid()):
        return
    worker = os.fork()
    if worker == 0:
        return
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(worker, number))
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    os._exit(status if status >= 0 else 128 - status)
