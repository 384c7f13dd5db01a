"""Traces runs of passes, and writes down what ran; test_benchmark_targets runs it under XLA.

usage: count_convolutions.py FOLDER PASS:XLA_SCOPE...

Each runs in a process of its own, which begins where this one has loaded TensorFlow: loading it
takes most of the time. FOLDER/PASS:XLA_SCOPE then has counts.json, and what XLA has compiled.
"""

import collections
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import fast_tensorflow  # noqa: F401
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from trainer import distributed
from trainer.benchmark import passes
from trainer.config import Config, DataConfig, ModelConfig
from trainer.inputs.dataset import open_dataset
from trainer.machine import session

IMAGE_SIZE = 16
RUNS = 4  # XLA compiles what has been run before.


def create_config():
    data = DataConfig(dataset="synthetic", image_size=IMAGE_SIZE, batch_size=tiny.BATCH_SIZE)
    return Config(mode="benchmark", **(tiny.config_groups() | {"data": data}))


def build(name, model="tiny:network", **flags):
    """A pass with a tiny network, in the default graph."""
    config = create_config()
    model_config = dataclasses.replace(config.model, model=model, **flags)
    config = dataclasses.replace(config, model=model_config)
    dataset = open_dataset(config.data, num_classes=tiny.NUM_CLASSES)
    return passes.PASSES[name](config, distributed.Group(), dataset)


def trace(name, **flags):
    """Counts how often each type of operation ran in one run of a pass, as the executor saw it."""
    with tf.Graph().as_default():
        target = build(name, **flags)
        initializer = tf1.global_variables_initializer()
        with tf1.Session(config=session.create_config(model=ModelConfig(**flags))) as run:
            run.run(initializer)
            run.run(target.stream.initializer, {target.stream.start_step: 0})
            run_once = run.make_callable(target.fetch, list(target.feeds), accept_options=True)
            values = target.feeds.values()
            for _ in range(RUNS):
                run_once(*values)
            options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
            metadata = tf1.RunMetadata()
            run_once(*values, options=options, run_metadata=metadata)
    return collections.Counter(
        found[1]
        for device in metadata.step_stats.dev_stats
        for node in device.node_stats
        if (found := re.search(r" = (\w+)\(", node.timeline_label))
    )


def count_under_xla(case, folder):
    """Runs a pass with its scope; XLA reads its flags when it first compiles something."""
    os.environ["TF_XLA_FLAGS"] = "--tf_xla_cpu_global_jit"
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    name, scope = case.split(":")
    (folder / "counts.json").write_text(json.dumps(trace(name, xla=True, xla_scope=scope)))


def main():
    for case in sys.argv[2:]:
        folder = Path(sys.argv[1]) / case
        folder.mkdir()
        process = os.fork()
        if process == 0:
            count_under_xla(case, folder)
            os._exit(0)
        if os.waitpid(process, 0)[1] != 0:
            sys.exit(f"{case} failed")


if __name__ == "__main__":
    main()
