"""Trains workers with --sync_batch_norm; test_sync_batch_norm runs it under horovodrun.

usage: joined_batch.py FOLDER

Each worker writes, by precision, the batches that it had and the variables after its steps; rank 0
also writes the initial variables.
"""

import dataclasses
import sys
from pathlib import Path

import fast_tensorflow  # noqa: F401
import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from trainer import distributed
from trainer.config import Config, OptimizerConfig
from trainer.graph import train_step
from trainer.inputs.dataset import open_dataset
from trainer.machine import session
from trainer.process.quick_exit import QuickExit

STEPS = 2
LEARNING_RATE = 0.1
PRECISIONS = ("float32", "bfloat16")


def create_config(precision):
    groups = tiny.config_groups()
    groups["model"] = dataclasses.replace(
        groups["model"], sync_batch_norm=True, precision=precision
    )
    return Config(**groups, optimizer=OptimizerConfig(optimizer="sgd"))


def train(group, folder, precision):
    """Takes some steps; writes what went into them and what came out."""
    config = create_config(precision)
    dataset = open_dataset(config.data)
    rank = group.worker.rank
    with tf.Graph().as_default():
        tf1.set_random_seed(1)
        graph = train_step.build_train_graph(config, group, dataset)
        variables = {v.op.name: v for v in tf1.global_variables()}
        initializer = tf1.global_variables_initializer()
        threads = session.create_config(local_size=group.worker.local_size)
        with tf1.Session(config=threads) as run:
            run.run(initializer)
            run.run(graph.broadcast_op)
            if rank == 0:
                np.savez(folder / f"{precision}_initial.npz", **run.run(variables))
            run.run(graph.stream.initializer, {graph.stream.start_step: 0})
            fetches = (graph.metrics, graph.stream.batch, graph.train_op)
            feeds = {graph.learning_rate: LEARNING_RATE}
            steps = [run.run(fetches, feeds) for _ in range(STEPS)]
            np.savez(folder / f"{precision}_final_{rank}.npz", **run.run(variables))
    np.savez(
        folder / f"{precision}_batches_{rank}.npz",
        images=np.stack([batch.images for _, batch, _ in steps]),
        labels=np.stack([batch.labels for _, batch, _ in steps]),
        loss=[metrics.loss for metrics, _, _ in steps],
    )


def main():
    folder = Path(sys.argv[1])
    group = distributed.connect()
    for precision in PRECISIONS:
        train(group, folder, precision)
    group.shutdown()


if __name__ == "__main__":
    leaving = QuickExit()
    main()
    leaving.exit(0)
