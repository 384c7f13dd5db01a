"""Computes the losses that tests/golden_losses.json holds.

usage (with tests/ in PYTHONPATH):

       golden_losses.py FOLDER      one worker, or each of several under horovodrun; each writes
                                    losses_<rank>.json into FOLDER: a list of `compute_cases`
       golden_losses.py --record    computes all cases with 1 and 2 workers and without the
                                    compiled kernels, and writes the file

The variables begin with values that follow from their names, and the examples are the tests' own,
so that the losses depend on what a step computes, and not on how many operations its graph has.
With the compiled kernels the losses are the same, but for rounding.
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import fast_tensorflow  # noqa: F401
import numpy as np
import processes
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed
from trainer.config import Config, DataConfig, ModelConfig
from trainer.cpu_kernels import library, switch
from trainer.graph import train_step
from trainer.inputs.dataset import open_dataset
from trainer.machine import session

FILE = Path(__file__).resolve().parent.parent / "golden_losses.json"
PRECISIONS = ("float32", "bfloat16")
WORKERS = (1, 2)


class Network(NamedTuple):
    """A network, the pixels of its input, the examples and number of its steps, and their rate."""

    model: str
    image_size: int
    batch_size: int
    steps: int
    learning_rate: float


NETWORKS = {
    "small": Network("tiny:deep_network", 16, 8, 20, 0.05),
    "resnet_v2_50": Network("resnet_v2_50", 40, 4, 3, 0.01),
}


def kernel_settings():
    """Whether the compiled kernels are used: without and, where this machine has them, with."""
    return ("off", "on") if library.find() is not None else ("off",)


@contextlib.contextmanager
def kernels(setting):
    """Builds graphs and sessions inside with or without the compiled kernels."""
    before = os.environ.get(switch.VARIABLE)
    os.environ[switch.VARIABLE] = "0" if setting == "off" else before or "1"
    try:
        yield
    finally:
        del os.environ[switch.VARIABLE]
        if before is not None:
            os.environ[switch.VARIABLE] = before


def initial_value(variable):
    """The value that a variable begins with: He's for filters (arXiv:1502.01852)."""
    name, shape = variable.op.name, variable.shape.as_list()
    if name.endswith("/weights"):
        rng = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
        return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    if name.endswith(("/gamma", "/moving_variance")):
        return np.ones(shape, np.float32)
    return None  # Its own initializer has nothing random.


def compute_losses(group, network, precision):
    """The loss of each step, as all workers see it."""
    config = Config(
        model=ModelConfig(
            model=network.model, precision=precision, weight_decay=1e-3, batch_norm_decay=0.9
        ),
        data=DataConfig(
            dataset="tiny:dataset",
            image_size=network.image_size,
            batch_size=network.batch_size,
            augment="none",
        ),
    )
    with tf.Graph().as_default():
        train = train_step.build_train_graph(config, group, open_dataset(config.data))
        variables = tf1.global_variables()
        initializer = tf1.global_variables_initializer()
        feeds = {
            variable.initializer.inputs[1]: value
            for variable in variables
            if (value := initial_value(variable)) is not None
        }
        threads = session.create_config(local_size=group.worker.local_size)
        with tf1.Session(config=threads) as run:
            run.run(initializer, feeds)
            run.run(train.broadcast_op)
            run.run(train.stream.initializer, {train.stream.start_step: 0})
            step = train.create_step(run)
            return [float(step(network.learning_rate, 0)[0].loss) for _ in range(network.steps)]


class Case(NamedTuple):
    """The losses of some steps.

    Attributes:
      name: of the case in the file.
      precision: float32 or bfloat16.
      kernels: off or on.
      losses: of each step.
    """

    name: str
    precision: str
    kernels: str
    losses: list[float]


def compute_cases(group, names=tuple(NETWORKS)):
    """The losses of every case that this machine can compute with the workers that there are."""
    cases = []
    for name, precision, setting in itertools.product(names, PRECISIONS, kernel_settings()):
        with kernels(setting):
            losses = compute_losses(group, NETWORKS[name], precision)
        workers = group.worker.size
        cases.append(Case(f"{name}, {precision}, {workers} workers", precision, setting, losses))
    return cases


def launch(workers, folder):
    """The cases of each worker of a horovodrun, or of one process, in order of rank."""
    arguments = [__file__, str(folder)]
    if workers == 1:
        done = processes.run([sys.executable, *arguments])
    else:
        done = processes.horovodrun(workers, arguments)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    files = [Path(folder, f"losses_{rank}.json") for rank in range(workers)]
    return [
        [Case(*case) for case in json.loads(file.read_text(encoding="utf-8"))] for file in files
    ]


def record():
    """Writes the file of golden losses."""
    rows = []
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            rows += [
                f"  {json.dumps(case.name)}: {json.dumps(case.losses)}"
                for case in launch(workers, folder)[0]
                if case.kernels == "off"
            ]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def main():
    """Runs the command line."""
    if sys.argv[1] == "--record":
        record()
        return
    group = distributed.connect()
    file = Path(sys.argv[1], f"losses_{group.worker.rank}.json")
    file.write_text(json.dumps(compute_cases(group)), encoding="utf-8")
    group.shutdown()


if __name__ == "__main__":
    main()
