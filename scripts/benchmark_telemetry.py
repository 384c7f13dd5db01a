#!/usr/bin/env python3
"""What telemetry costs: the same training steps with all that is logged by default, and with none.

Both take turns in one process, on one session, in blocks of steps, A B B A ...; what counts is the
median of the rounds' ratios, since a machine's speed drifts. Everything that telemetry does is in
the time of its blocks, its pauses included. The network is small: a step takes some 20 ms on two
cores. On a machine that does nothing else (what it tells of the CPU's time, of all threads, means
something on a busy one, too):

  scripts/benchmark_telemetry.py
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from shared import loaded_tensorflow, program  # noqa: F401

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed
from trainer.config import Config, DataConfig, ModelConfig, RunConfig
from trainer.graph import train_step
from trainer.graph.initial_values import build_initializer
from trainer.inputs.dataset import open_dataset
from trainer.machine.session import open_session
from trainer.plan import create_plan
from trainer.run.monitor import create_monitor
from trainer.telemetry import tags
from trainer.telemetry.console import TextConsole
from trainer.telemetry.mllog import NullMLPerfLog
from trainer.telemetry.step import measure_step
from trainer.telemetry.writers.run_writer import create_writer

_RATE = 0.01
_CLASSES = 10
_BATCH_SIZE = 32


def network(
    images: tf.Tensor, num_classes: int, is_training: bool
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Four convolutions with ReLU, and a linear layer."""
    del is_training
    net = images
    for number in range(4):
        shape = [3, 3, net.shape[-1], 32]
        kernel = tf1.get_variable(f"conv{number}/weights", shape, net.dtype)
        net = tf.nn.relu(tf.nn.conv2d(net, kernel, 2 if number % 2 else 1, "SAME"))
    pooled = tf.reduce_mean(net, [1, 2])
    weights = tf1.get_variable("logits/weights", [pooled.shape[-1], num_classes], net.dtype)
    return pooled @ weights, {}


def create_steps(logdir: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Creates two functions that run a step of one session: without and with telemetry.

    Args:
      logdir: a new folder.
    """
    config = Config(
        model=ModelConfig(model="benchmark_telemetry:network"),
        data=DataConfig(dataset="synthetic", image_size=48, batch_size=_BATCH_SIZE),
        run=RunConfig(steps=10**6, logdir=logdir),
    )
    group = distributed.Group()
    plan = create_plan(
        config.run, global_batch_size=_BATCH_SIZE, train_examples=10**6, validation_examples=0
    )
    with tf.Graph().as_default():
        dataset = open_dataset(config.data, num_classes=_CLASSES)
        built = train_step.build_train_graph(config, group, dataset)
        session = open_session()
        session.run(build_initializer())
        session.run(built.broadcast_op)
        session.run(built.stream.initializer, {built.stream.start_step: 0})
    run_step = built.create_step(session)
    monitor = create_monitor(
        config,
        group,
        plan,
        built,
        logdir=logdir,
        class_names=[str(number) for number in range(_CLASSES)],
        writer=create_writer(logdir, rank=0, first_step=1),
        console=TextConsole(plan, first_step=1, stream=open(os.devnull, "w")),  # noqa: SIM115
        mllog=NullMLPerfLog(),
    )
    monitor.clock.start()
    number = 0

    def plain() -> None:
        run_step(_RATE, 0.0)

    def watched() -> None:
        nonlocal number
        number += 1
        metrics, histograms = run_step(_RATE, 0.0)
        monitor.log.add(measure_step(number, monitor.clock.finish_step(), _RATE, metrics))
        monitor.after_step(session, number, histograms)
        if plan.reports_at(number):
            with monitor.pauses.during(tags.REPORT_MS, number):
                monitor.log.flush()

    return plain, watched


class Block(NamedTuple):
    """The time of a block, milliseconds per step: elapsed, and of the CPU in all threads."""

    wall_ms: float
    cpu_ms: float


def time_block(step: Callable[[], Any], steps: int) -> Block:
    """Times a block of steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Block(1000 * wall / steps, 1000 * cpu / steps)


def compare(blocks: dict[str, list[Block]], field: str) -> dict[str, float]:
    """Medians with and without telemetry, and the median share that telemetry adds in a round."""
    values = {name: [getattr(block, field) for block in each] for name, each in blocks.items()}
    rounds = zip(values["with"], values["without"], strict=True)
    medians = {name: statistics.median(each) for name, each in values.items()}
    return {**medians, "more": statistics.median(one / other for one, other in rounds) - 1}


def main() -> None:
    """Times steps with and without telemetry, and prints by how much they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=program.at_least(1), default=200, help="blocks of each; %(default)s"
    )
    parser.add_argument(
        "--steps", type=program.at_least(1), default=10, help="per block; %(default)s"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as logdir:
        steps = dict(zip(("without", "with"), create_steps(logdir), strict=True))
        for step in steps.values():
            time_block(step, options.steps)
        blocks: dict[str, list[Block]] = {name: [] for name in steps}
        for number in range(options.rounds):
            for name in list(steps)[:: -1 if number % 2 else 1]:
                blocks[name].append(time_block(steps[name], options.steps))
    fields = {field: compare(blocks, field) for field in Block._fields}
    print(json.dumps({"per step": fields, **vars(options)}, indent=2))


if __name__ == "__main__":
    program.run(main)
