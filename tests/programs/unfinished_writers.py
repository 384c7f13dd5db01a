"""Comes with every file and folder that a program writes to where it would be renamed, and stays.

usage: unfinished_writers.py FOLDER

The log folder is FOLDER/log. It prints how many writers stand still; then it waits to be killed.
"""

import sys
import threading
from pathlib import Path

import fast_tensorflow  # noqa: F401
import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints.manifest import RunFacts
from trainer.checkpoints.store import create_store
from trainer.config import Config, RunConfig
from trainer.distributed import Group, Worker
from trainer.inputs.conversion import shard_writer
from trainer.inputs.sources import index
from trainer.process import files
from trainer.run import outputs
from trainer.safety import run_lock
from trainer.safety.status import Status
from trainer.telemetry.console import NullConsole
from trainer.telemetry.step_profiler import create_step_profiler
from trainer.telemetry.writers.json_lines import JsonLinesWriter

_LIMIT_SEC = 60


def stand_still(reached):
    """Takes the place of what is called when a file is about to get its own name."""

    def wait(*arguments):
        reached.release()
        threading.Event().wait()

    return wait


def create_save(logdir):
    """The save of a checkpoint."""
    with tf.Graph().as_default():
        variable = tf1.get_variable("w", initializer=np.zeros([3], np.float32))
        session = tf1.Session()
        session.run(variable.initializer)
        facts = RunFacts(1, 10, 30, 100, "data", {}, {})
        store = create_store(
            RunConfig(logdir=str(logdir)), rank=0, variables=[variable], facts=facts
        )
    return lambda: store.save(session, 4)


def create_profile(logdir):
    """The end of a profile."""
    profiler = create_step_profiler(str(logdir), range(1, 3), Group(), NullConsole())
    profiler.after_step(0)
    tf.square(2.0)
    return profiler.close


def write_export(folder):
    """Begins to write an export as --mode=export does it."""
    with files.replacing(folder / "export") as temporary:
        temporary.mkdir()
        (temporary / "saved_model.pb").write_bytes(b"half")


def main():
    folder = Path(sys.argv[1])
    logdir = folder / "log"
    logdir.mkdir()
    (logdir / "metrics.jsonl").write_text('{"step": 1}\n')
    config = Config(run=RunConfig(logdir=str(logdir), result_json=str(folder / "result.json")))
    task = shard_writer.Task(str(folder / "train-00000-of-00001"), digest="digest", images=())
    shards = [index.ShardIndex(*(np.zeros([2], np.int64) for _ in index.ShardIndex._fields))]
    writers = [
        create_save(logdir),
        create_profile(logdir),
        lambda: Status(str(logdir), rank=0).set("running"),
        lambda: run_lock.create_run_lock(str(logdir), rank=0, on_loss=print).take(),
        lambda: JsonLinesWriter(logdir / "metrics.jsonl", first_step=1),
        lambda: outputs.write_model(config, Worker(), None),
        lambda: outputs.write_flags(config, Worker()),
        lambda: outputs.report(config, Worker(), {}, text=""),
        lambda: shard_writer.convert_shard(task),
        lambda: index._write_cached([str(folder / ".train.index.npz")], "state", shards),
        lambda: write_export(folder),
    ]
    reached = threading.Semaphore(0)
    files.sync = run_lock.os.link = stand_still(reached)
    for writer in writers:
        threading.Thread(target=writer, daemon=True).start()
        if not reached.acquire(timeout=_LIMIT_SEC):
            sys.exit("a writer has come to its end, or nowhere")
    print(len(writers), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
