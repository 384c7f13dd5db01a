"""Kills processes that save in the background, at given points, and tells what the next one finds.

usage: killed_saves.py FOLDER

Each is a fork of this process, which has loaded TensorFlow and started nothing of it. A line of
JSON for each point: its name, whether SIGKILL was the end, the step and the values that were found,
and the names of the files that are left after a last save.
"""

import json
import os
import pathlib
import signal
import sys
from pathlib import Path

import fast_tensorflow  # noqa: F401
import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import bundle, folder_store, layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.background import BackgroundSave
from trainer.checkpoints.manifest import RunFacts
from trainer.checkpoints.store import create_store
from trainer.config import RunConfig
from trainer.process import files

# (owner, name, which call): the process is killed when the function is called.
POINTS = {
    "copied": (bundle.BundleWriter, "write", 1),
    "written": (bundle.BundleWriter, "damage", 1),
    "read back": (files, "sync", 1),
    "half synced": (files, "sync", 2),
    "synced": (checkpoint_manifest, "describe_files", 1),
    "described": (layout, "move", 1),
    "half renamed": (pathlib.Path, "replace", 2),
    "renamed": (folder_store.FolderStore, "_create_entry", 1),
    "entered": (folder_store.FolderStore, "_prune", 1),
    "half removed": (pathlib.Path, "unlink", 2),
}


def kill_at(owner, name, number):
    """Kills this process at a call of a function, before anything of the call is done."""
    function = getattr(owner, name)
    calls = []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, call)


def start(folder):
    """(store, session, a function that sets all variables to a step's values)."""
    weights = tf1.get_variable("w", initializer=np.zeros([300, 100], np.float32))
    step = tf1.train.get_or_create_global_step()
    session = tf1.Session()
    session.run([weights.initializer, step.initializer])
    store = create_store(
        RunConfig(logdir=str(folder), keep_checkpoints=1),
        rank=0,
        variables=[weights, step],
        facts=RunFacts(1, 10, 30, 100, "data", {}, {}),
    )

    def set_to(number):
        values = [(weights, np.full([300, 100], number, np.float32)), (step, number)]
        restore.assign(session, values)

    return store, session, set_to


def save_and_be_killed(folder, point):
    """Saves step 1; begins to save step 2, goes on to step 3 meanwhile, and is killed."""
    store, session, set_to = start(folder)
    set_to(1)
    store.save(session, 1)
    set_to(2)
    kill_at(*POINTS[point])
    save = store.copy(session, 2).save
    set_to(3)
    background = BackgroundSave()
    background.begin(2, save)
    background.take(wait=True)


def look(folder, point, was_killed):
    """Starts as the next run does; then saves once more."""
    files.sweep(folder)
    store, session, set_to = start(folder)
    found = search.find_newest(str(folder))
    store.restore(session)
    values = session.run([tf1.global_variables()])[0]
    set_to(4)
    store.save(session, 4)
    told = {
        "point": point,
        "killed": was_killed,
        "step": found.step,
        "skipped": found.skipped,
        "values": sorted({float(number) for value in values for number in np.unique(value)}),
        "left": sorted(path.name for path in folder.iterdir()),
    }
    print(json.dumps(told), flush=True)


def fork(function, *arguments):
    """Runs a function in a process of its own; returns the signal that ended it, or 0."""
    pid = os.fork()
    if not pid:
        with tf.Graph().as_default():
            function(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main():
    for number, point in enumerate(POINTS):
        folder = Path(sys.argv[1]) / str(number)
        folder.mkdir()
        was_killed = fork(save_and_be_killed, folder, point) == -signal.SIGKILL
        if fork(look, folder, point, was_killed):
            sys.exit(f"{point}: the next one failed")


if __name__ == "__main__":
    main()
