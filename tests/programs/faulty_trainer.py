"""`python -m trainer`, in which something goes wrong at a given place, once.

usage: faulty_trainer.py FLAG...

The file that $FAULT_PLAN names holds {"queue": [{"phase", "rank", "action"}, ...], "fired": TIME}.
The first one that is queued happens when its worker comes to its phase, in a process that was
started after the one before had happened. What happens is real: a signal, an exception, an exit.
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from trainer import __main__ as main
from trainer.config import Config
from trainer.machine.loading import load_tensorflow
from trainer.process import launcher
from trainer.process.quick_exit import QuickExit

PHASES = (
    "start-up",
    "broadcast",
    "mid-step",
    "checkpoint",
    "before the write",
    "before the sync",
    "before the rename",
    "before the manifest",
    "evaluation",
    "last step",
)
ACTIONS = ("KILL", "TERM", "STOP", "exception", "exit 0")
_STARTED = time.time()
_FIRST_STEPS = 3
_MIDDLE_SEC = 0.005


class Planned(Exception):
    """The exception that was planned."""


class Plan:
    """The queue, shared by all workers of all starts."""

    def __init__(self, path, rank):
        self._path = Path(path)
        self._rank = rank

    def take(self, phase):
        """The action that is due now, removed from the queue; None: nothing is."""
        with open(self._path, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            plan = json.load(file)
            due = plan["queue"][0] if plan["queue"] else None
            if due is None or plan["fired"] > _STARTED:
                return None
            if (due["phase"], due["rank"]) != (phase, self._rank):
                return None
            plan = {"queue": plan["queue"][1:], "fired": time.time()}
            file.seek(0)
            file.truncate()
            file.write(json.dumps(plan))
        what = f"{phase}, worker {self._rank}, {due['action']}"
        print(f"FAULT {plan['fired']} {what}", file=sys.stderr, flush=True)
        return due["action"]


def act(action):
    if action == "exception":
        raise Planned("as planned")
    if action == "exit 0":
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, f"SIG{action}"))


def visit(plan, phase):
    """Lets happen what is due in a phase, in the middle of what the main thread does next."""
    action = plan.take(phase)
    if action == "exception":
        act(action)
    elif action is not None:
        threading.Timer(_MIDDLE_SEC, act, [action]).start()


def before(owner, name, phase, plan):
    """Visits a phase whenever a function is called."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        visit(plan, phase)
        return function(*args, **kwargs)

    setattr(owner, name, call)


def at(owner, name, phases, plan, *, after=False):
    """Lets happen what is due in one of some phases, at a call of a function and in its thread."""
    function = getattr(owner, name)

    def take():
        for action in filter(None, map(plan.take, phases)):
            act(action)

    def call(*args, **kwargs):
        if not after:
            take()
        result = function(*args, **kwargs)
        if after:
            take()
        return result

    setattr(owner, name, call)


def spoil_saves(plan):
    """Puts phases into rank 0's saves, which a thread makes; the other one comes amid them."""
    from trainer.checkpoints import bundle, folder_store, layout
    from trainer.run import guard

    if plan._rank:
        before(guard.LoopGuard, "save", "checkpoint", plan)
        names = [phase for phase in PHASES if phase.startswith("before the ")]
        at(guard.LoopGuard, "save", names, plan, after=True)
        return
    before(bundle.BundleWriter, "damage", "checkpoint", plan)
    at(bundle.BundleWriter, "write", ["before the write"], plan)
    at(bundle.BundleWriter, "damage", ["before the sync"], plan, after=True)
    at(layout, "move", ["before the rename"], plan)
    at(folder_store.FolderStore, "_create_entry", ["before the manifest"], plan)


def spoil(plan):
    """Puts the phases into the functions that make them."""
    import tensorflow.compat.v1 as tf1

    from trainer.graph import train_step
    from trainer.run import setup as run_setup
    from trainer.run import validation

    before(run_setup, "open_dataset", "start-up", plan)
    before(validation, "evaluate", "evaluation", plan)
    spoil_saves(plan)
    build, run, create_step = (
        train_step.build_train_graph,
        tf1.Session.run,
        train_step.TrainGraph.create_step,
    )
    broadcasts = []

    def build_train_graph(*args, **kwargs):
        built = build(*args, **kwargs)
        broadcasts.append(built.broadcast_op)
        return built

    def session_run(session, fetches, *args, **kwargs):
        if broadcasts and fetches is broadcasts[0]:
            visit(plan, "broadcast")
        return run(session, fetches, *args, **kwargs)

    def create_faulty_step(train_graph, session, **options):
        run_step = create_step(train_graph, session, **options)
        taken = []

        def run_faulty_step(*args):
            taken.append(args)
            if len(taken) == _FIRST_STEPS:
                visit(plan, "mid-step")
            if int(session.run(train_graph.global_step)) + 1 == int(os.environ["LAST_STEP"]):
                visit(plan, "last step")
            return run_step(*args)

        return run_faulty_step

    train_step.build_train_graph = build_train_graph
    tf1.Session.run = session_run
    train_step.TrainGraph.create_step = create_faulty_step


def tell_hashes(folder, rank):
    """Writes a digest of each worker's variables when its training ends, however it ends."""
    from trainer.modes import train

    inner = train._train

    def train_and_tell(config, group, setup, *args, **kwargs):
        try:
            return inner(config, group, setup, *args, **kwargs)
        finally:
            import tensorflow.compat.v1 as tf1

            # Who saves the state before a step counts back to it, by itself.
            with setup.session.graph.as_default():
                found = {v.op.name: v for v in tf1.global_variables()}
                variables = [found[name] for name in sorted(found) if name != "global_step"]
            digest = hashlib.sha256()
            for value in setup.session.run(variables):
                digest.update(value.tobytes())
            (Path(folder) / f"variables_{rank}").write_text(digest.hexdigest())

    train._train = train_and_tell


def run():
    load_tensorflow(Config())  # As the trainer does: what is spoilt would load it with Keras.
    launched = launcher.find()
    rank = launched.rank if launched else 0
    if "HASHES" in os.environ:
        tell_hashes(os.environ["HASHES"], rank)
    if "FAULT_PLAN" in os.environ:
        spoil(Plan(os.environ["FAULT_PLAN"], rank))
    QuickExit().exit(main.run(sys.argv))


if __name__ == "__main__":
    run()
