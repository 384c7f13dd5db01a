"""Writes down what comes of things that two workers do; test_distributed runs it by horovodrun.

usage: two_workers.py FOLDER
"""

import contextlib
import itertools
import json
import math
import os
import sys
from pathlib import Path

import fast_tensorflow  # noqa: F401
import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import test_update
import tiny

from trainer import distributed
from trainer.config import CommunicationConfig, Config
from trainer.errors import UserError
from trainer.graph import train_step
from trainer.graph.evaluation import build_evaluation_graph
from trainer.graph.reduction import reduce_gradients
from trainer.inputs.dataset import open_dataset
from trainer.machine import session
from trainer.process.quick_exit import QuickExit
from trainer.run.evaluation import evaluate
from trainer.run.evaluation_details import EvaluationDetails

STEPS = 5
LEARNING_RATE = 0.1


class WithoutAveraging(distributed.HorovodGroup):
    """The mistake: every worker applies its own gradients."""

    def __init__(self, group):
        self.__dict__.update(group.__dict__)

    def average(self, tensor, name):
        return tensor if name.startswith("gradient/") else super().average(tensor, name)


def train(group, folder, name):
    """Takes some steps; writes this worker's variables and input, and the evaluation after them."""
    config = Config(**tiny.config_groups())
    dataset = open_dataset(config.data)
    worker = group.worker
    with tf.Graph().as_default():
        tf1.set_random_seed(worker.rank)  # Other initial values on each: the broadcast is needed.
        train_graph = train_step.build_train_graph(config, group, dataset)
        evaluation = build_evaluation_graph(config, group, dataset)
        variables = tf1.global_variables()
        initializer = tf1.global_variables_initializer()
        names = [variable.op.name for variable in variables]
        with tf1.Session(config=session.create_config(local_size=worker.local_size)) as run:
            run.graph.finalize()
            run.run(initializer)
            run.run(train_graph.broadcast_op)
            initial = dict(zip(names, run.run(variables), strict=True))
            run.run(train_graph.stream.initializer, {train_graph.stream.start_step: 0})
            fetches = (train_graph.metrics, train_graph.stream.batch, train_graph.train_op)
            steps = [
                run.run(fetches, {train_graph.learning_rate: LEARNING_RATE}) for _ in range(STEPS)
            ]
            final = dict(zip(names, run.run(variables), strict=True))
            details = EvaluationDetails(dataset.info)
            result = evaluate(run, evaluation, group, details)
            told = details.summarize(group)
    np.savez(folder / f"{name}_initial_{worker.rank}.npz", **initial)
    np.savez(folder / f"{name}_final_{worker.rank}.npz", **final)
    np.savez(
        folder / f"{name}_batches_{worker.rank}.npz",
        images=np.stack([batch.images for _, batch, _ in steps]),
        labels=np.stack([batch.labels for _, batch, _ in steps]),
        loss=[metrics.loss for metrics, _, _ in steps],
    )
    return {"count": result.count, "top1": result.top1, "loss": result.loss, "details": told}


def run_steps(group, config, feeds_of_steps):
    """Runs a step of the trainer's own graph for each dict of feeds by name.

    Returns:
      the metrics of each step, the final variables by name, and how many all-reduces the last step
      and the batch before it ran, by the session's own trace.
    """
    with tf.Graph().as_default():
        tf1.set_random_seed(1)
        train_graph = train_step.build_train_graph(config, group, open_dataset(config.data))
        variables = {variable.op.name: variable for variable in tf1.global_variables()}
        initializer = tf1.global_variables_initializer()
        threads = session.create_config(local_size=group.worker.local_size)
        with tf1.Session(config=threads) as run:
            run.run(initializer)
            run.run(train_graph.broadcast_op)
            run.run(train_graph.stream.initializer, {train_graph.stream.start_step: 0})
            metrics, collectives = [], {}
            for feeds in feeds_of_steps:
                for _ in range(train_graph.batches_per_update - 1):
                    collectives["batch"] = count_collectives(run, train_graph.accumulate_op, {})[0]
                names = {"request": train_graph.request}
                feed = {names.get(name, f"{name}:0"): value for name, value in feeds.items()}
                feed[train_graph.learning_rate] = LEARNING_RATE
                fetches = (train_graph.metrics, train_graph.train_op)
                collectives["update"], (taken, _) = count_collectives(run, fetches, feed)
                metrics.append({name: float(value) for name, value in taken._asdict().items()})
            return metrics, run.run(variables), collectives


def count_collectives(run, fetches, feeds):
    """Returns how many collectives a session's run executed, and what the run returned."""
    trace = tf1.RunMetadata()
    options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
    values = run.run(fetches, feeds, options=options, run_metadata=trace)
    nodes = [node for device in trace.step_stats.dev_stats for node in device.node_stats]
    return sum("= HorovodAllreduce(" in node.timeline_label for node in nodes), values


def update_together(group, folder):
    """Updates that one worker spoils, and updates of several batches."""
    poison = [{}, {"poison": math.nan if group.worker.rank == 1 else 1.0}, {}]
    ask = [{"request": float(group.worker.rank)}, {}, {}]
    runs = {
        "poisoned": (test_update.create_config(network="poisoned_network"), poison),
        "poisoned_float16": (
            test_update.create_config(network="poisoned_network", precision="float16"),
            poison,
        ),
        "small_batches": (
            test_update.create_config(network="network_without_bn", accumulate_steps=4),
            ask,
        ),
        "large_batches": (
            test_update.create_config(network="network_without_bn", batch_size=32),
            ask,
        ),
    }
    report = {}
    for name, (config, feeds) in runs.items():
        metrics, final, collectives = run_steps(group, config, feeds)
        np.savez(folder / f"{name}_{group.worker.rank}.npz", **final)
        report[name] = {"metrics": metrics, "collectives": collectives}
    return report


VARIABLES = {  # Of each kind that a run has, vectors of three types among them.
    "scalar": ((), np.float32),
    "counter": ((), np.int64),
    "weights": ((3, 2), np.float32),
    "vector": ((5,), np.float32),
    "one": ((1,), np.float32),
    "empty": ((0,), np.float32),
    "other_vector": ((4,), np.float32),
    "whole_numbers": ((3,), np.int64),
    "half": ((2,), np.float16),
}


def values_of(rank):
    """Values of one worker's `VARIABLES`, no two of which are alike."""
    values, numbers = {}, itertools.count(100 * rank)
    for name, (shape, dtype) in VARIABLES.items():
        size = math.prod(shape)
        values[name] = np.array(list(itertools.islice(numbers, size)), dtype).reshape(shape)
    return values


def broadcast(group, folder):
    """Writes what each worker's variables are after the broadcast."""
    with tf.Graph().as_default(), tf1.Session() as run:
        variables = {
            name: tf1.Variable(value, name=name, use_resource=True)
            for name, value in values_of(group.worker.rank).items()
        }
        sent = group.build_broadcast(list(variables.values()))
        run.run(tf1.global_variables_initializer())
        run.run(sent)
        np.savez(folder / f"broadcast_{group.worker.rank}.npz", **run.run(variables))


SHAPES = ((3, 5), (7,), (1,), (4, 2, 2))


def gradients_of(rank):
    """Gradients of one worker: unlike each other in all but the third, which is the same."""
    rng = np.random.default_rng(rank)
    made = [rng.normal(0, 10.0 ** (number - 1), shape) for number, shape in enumerate(SHAPES)]
    made[2][:] = 1.5
    return [each.astype(np.float32) for each in made]


def reduce_together(group, folder):
    """Reduces gradients in each way; writes what came out, and those of a worker with a NaN."""
    for reduction, compression in itertools.product(
        ("average", "adasum"), ("none", "float16", "bfloat16")
    ):
        config = Config(
            communication=CommunicationConfig(
                gradient_reduction=reduction,
                gradient_compression=compression,
                fusion_threshold_mb=0,  # As many buckets as gradients.
            )
        )
        mine = gradients_of(group.worker.rank)
        with tf.Graph().as_default(), tf1.Session() as run:
            fed = [tf1.placeholder(tf.float32, shape) for shape in SHAPES]
            names = [f"{reduction}/{compression}/{number}" for number in range(len(SHAPES))]
            reduced = reduce_gradients(config, group, fed, names)
            values = run.run(reduced, dict(zip(fed, mine, strict=True)))
        np.savez(folder / f"{reduction}_{compression}_{group.worker.rank}.npz", *values)


def fail_on(group, rank, message):
    """Returns what a worker hears when another one fails."""
    try:
        with group.fail_together():
            if group.worker.rank == rank:
                raise UserError(message)
    except UserError as error:
        return str(error)
    return None


def main():
    folder = Path(sys.argv[1])
    group = distributed.connect()
    report = {
        "worker": group.worker,
        "gathered": group.gather({"rank": group.worker.rank, "text": "é" * group.worker.rank}),
        "one_fails": fail_on(group, 1, "its disk is full"),
        "evaluation": train(group, folder, "averaged"),
    }
    train(WithoutAveraging(group), folder, "alone")
    report["updates"] = update_together(group, folder)
    reduce_together(group, folder)
    broadcast(group, folder)
    report["cores"] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # It has ended since.
            report["cores"].append(sorted(os.sched_getaffinity(int(thread))))
    (folder / f"report_{group.worker.rank}.json").write_text(json.dumps(report))
    group.shutdown()


if __name__ == "__main__":
    leaving = QuickExit()
    main()
    leaving.exit(0)
