"""Starts real processes for tests."""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(**extra):
    """The environment of a process that is to find this checkout and the tests' plug-ins."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "programs")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **extra,
    }


def run(command, *, timeout_sec=300, cwd=ROOT, env=None, **extra):
    """Runs a command, from the checkout if nothing else is said, and returns what came of it."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=env or environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout_sec,
        check=False,
    )


def horovodrun(workers, arguments, *, timeout_sec=300, **extra):
    """Runs Python with some arguments on several workers."""
    return run(
        ["horovodrun", "-np", str(workers), sys.executable, *arguments],
        timeout_sec=timeout_sec,
        **extra,
    )


def train_script(workers, flags):
    """Runs the README's first command with some flags, in the environment of the tests."""
    command = ["scripts/train.sh", "-np", str(workers), *flags]
    return run(command, SLIM_HOROVOD_VENV=sys.prefix)


def trainer(*flags, **extra):
    """Runs `python -m trainer` with some flags in one process."""
    return run([sys.executable, "-m", "trainer", *flags], **extra)


@functools.cache
def _loaded():
    """A process that has loaded TensorFlow, and runs trainers until this one ends."""
    program = ROOT / "tests" / "programs" / "several_trainers.py"
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # Its input ends, and so does it.
    return process


def trainers(*command_lines, cwd=ROOT, **extra):
    """Runs several command lines of the trainer, which share no more than a loaded TensorFlow."""
    process = _loaded()
    done = []
    for flags in command_lines:
        print(json.dumps([flags, environment(**extra), str(cwd)]), file=process.stdin, flush=True)
        answered, _, _ = select.select([process.stdout], [], [], 900)
        if not answered:
            process.kill()
            _loaded.cache_clear()
            raise AssertionError(f"{flags}: no end")
        done.append(subprocess.CompletedProcess(flags, *json.loads(process.stdout.readline())))
    return done


# Keeps a core busy; not for ever, should nobody end it.
SPINNING = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@contextlib.contextmanager
def others_that_spin(number):
    """Keeps cores busy by processes that are no children of this one; yields their numbers."""
    command = ["sh", "-c", '"$0" -c "$1" > /dev/null 2>&1 & echo $!', sys.executable, SPINNING]
    pids = [int(run(command).stdout) for _ in range(number)]
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def check_with_and_without_onednn(code):
    """Runs code in processes of their own, in which every session has threads of its own."""
    for onednn in "01":
        extra = {"TF_OVERRIDE_GLOBAL_THREADPOOL": "1", "TF_ENABLE_ONEDNN_OPTS": onednn}
        done = run([sys.executable, "-c", f"import fast_tensorflow\n{code}"], **extra)
        assert done.returncode == 0, done.stdout + done.stderr
