"""Runs command lines of the trainer, one after the other, and tells what came of each.

Each line of the standard input is a request: the flags, the environment variables, and the current
folder, as a list in JSON; each line of the standard output its answer: exit status, stdout and
stderr, likewise. Each command line runs in a process of its own, which begins where this one has
loaded TensorFlow as the trainer does, and other packages: loading them takes longer than most of
what tests ask for. The program's own modules are left to each, in the order of its mode.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import traceback

from trainer import __main__ as program
from trainer.config import Config
from trainer.process import settings, start_up, streams

PACKAGES = (
    *("tensorflow", "tf_slim", "PIL.Image", "google_crc32c", "tqdm", "multiprocessing.connection"),
    *("tensorboard.plugins.custom_scalar.summary", "tensorboard.plugins.hparams.summary"),
)


def run_here(flags, variables, place, folder):
    """Runs a command line in this process, which ends."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(place)
    status = 1
    try:
        status = program.run(["slim-horovod", *flags])
    except BaseException:  # noqa: BLE001 (the end of a process, as Python would end it)
        traceback.print_exc()
    finally:
        streams.drain()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(flags, variables, place):
    """Exit status, stdout and stderr of a command line in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        process = os.fork()
        if process == 0:
            run_here(flags, variables, place, folder)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = []
        for name in ("stdout", "stderr"):
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                texts.append(file.read())
        return [status, *texts]


def main():
    settings.apply(settings.Moment.TENSORFLOW, Config(), has_gpu=settings.has_gpu())
    contexts = (start_up.without_notes, start_up.without_the_unused, start_up.without_collection)
    with contextlib.ExitStack() as stack:
        for each in contexts:
            stack.enter_context(each())
        for name in PACKAGES:
            importlib.import_module(name)
        gc.freeze()
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
