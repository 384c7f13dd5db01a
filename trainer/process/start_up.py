"""The start of a process: what it does then, and when it was. Nothing here imports TensorFlow.

Loading TensorFlow takes most of the time until the first line, and building the graph most of the
time from there to the first step.
"""

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from trainer.process import identity

_NOTES = "^(I0000 |WARNING: All log messages)"
# What TensorFlow loads where it is installed, and does without where it is not: Keras, so that it
# may register itself, and what an older Keras within TensorFlow, on which layers of TF1 stand, has
# for HDF5 and sparse input.
_UNUSED = ("keras.src.optimizers", "h5py", "scipy")
# Programs that start workers, as the first or the second word of their command lines.
_LAUNCHERS = ("horovodrun", "mpirun", "mpiexec", "orterun", "prterun", "srun")


def times_up_to_now() -> dict[str, float]:
    """Returns the durations of the first phases of a worker, seconds, which end now.

    They are "launcher", from the start of its launcher to its own, where the launcher runs on this
    host, and "imports", since then. Empty where there is no /proc.
    """
    ages: list[float] = []
    pid = os.getpid()
    own = identity.command_of(pid)
    while (found := identity.find(pid)) is not None:
        command = identity.command_of(pid)
        names = [os.path.basename(word) for word in command[:2]]
        if command == own:  # This process, and the one that `keeper` has left behind.
            ages[:1] = [_age_sec(found)]
        elif any(name in _LAUNCHERS for name in names):
            ages[1:] = [_age_sec(found)]
        pid = identity.parent_of(pid)
    if not ages:
        return {}
    launched = {"launcher": ages[1] - ages[0]} if len(ages) > 1 else {}
    return {**launched, "imports": ages[0]}


def _age_sec(process: identity.Process) -> float:
    began_sec = process.start_ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_sec)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Turns Python's collector of cyclic garbage off for what is made inside, and stays.

    It would look through all modules and all operations of the graph again and again.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Filters out what TensorFlow's libraries print while they are loaded, whatever the log level.

    Each worker would print it before its own first line. All else that is written to the standard
    error meanwhile comes through, even from a library that ends the process.
    """
    errors = os.dup(2)
    command = ["grep", "--invert-match", "--extended-regexp", _NOTES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors) as filtering:
        os.dup2(filtering.stdin.fileno(), 2)  # type: ignore[union-attr]  # It is a pipe.
        try:
            yield
        finally:
            os.dup2(errors, 2)
            os.close(errors)


@contextlib.contextmanager
def without_the_unused() -> Iterator[None]:
    """Lets TensorFlow load without Keras, which `tf.keras` then loads when it is used, and others.

    Keras loads scikit-learn, scipy and matplotlib where they are installed. Nothing here uses Keras
    or them, and all together take nearly as long as TensorFlow itself. Whatever is hidden meanwhile
    can be imported afterwards.
    """
    hidden = [name for name in _UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # So that its import fails.
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
