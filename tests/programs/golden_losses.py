"""Computes the losses that tests/golden_losses.json holds.

usage (with tests/ and scripts/ in PYTHONPATH):

       golden_losses.py FOLDER      one worker, or each of several under horovodrun; each writes
                                    losses_<rank>.json into FOLDER: a list of `compute_cases`
       golden_losses.py --check     computes all cases with 1 and 2 workers, and compares them with
                                    the file; the suite leaves out some of the large network
       golden_losses.py --record    computes them without the compiled kernels, and writes the file

The variables begin with values that follow from their names, and the examples are the tests' own,
so that the losses depend on what a step computes, and not on how many operations its graph has.
With the compiled kernels the losses are the same, but for rounding.
"""

import contextlib
import functools
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
from trainer.process.quick_exit import QuickExit

FILE = Path(__file__).resolve().parent.parent / "golden_losses.json"
PRECISIONS = ("float32", "bfloat16")
WORKERS = (1, 2)


class Tolerance(NamedTuple):
    """The distance that losses may have from the golden ones, relative.

    CPUs, numbers of threads and the compiled kernels round differently, and training makes more of
    a difference with each step.

    Attributes:
      first: the distance of the first loss.
      growth: the ratio of the distance of each loss after it to that of the one before.
      last: the distance of any loss, at most.
    """

    first: float
    growth: float
    last: float


class Network(NamedTuple):
    """A network, the pixels of its input, the examples and number of its steps, and their rate."""

    model: str
    image_size: int
    batch_size: int
    steps: int
    learning_rate: float
    tolerances: dict[str, Tolerance]


NETWORKS = {
    "small": Network(
        *("tiny:deep_network", 16, 8, 20, 0.05),
        {"float32": Tolerance(2e-5, 2, 5e-3), "bfloat16": Tolerance(2e-3, 2, 0.08)},
    ),
    # Its last maps have 2 x 2 positions of 4 examples: one step makes 3e-3 of a rounding.
    "resnet_v2_50": Network(
        *("resnet_v2_50", 40, 4, 3, 0.01),
        {"float32": Tolerance(2e-5, 1000, 0.02), "bfloat16": Tolerance(2e-3, 10, 0.02)},
    ),
}


def kernel_settings():
    """The settings of the compiled kernels: without and, where this machine has them, with."""
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


@functools.cache
def initial_value(name, shape):
    """The value that a variable begins with: He's for filters (arXiv:1502.01852)."""
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
            resize="bilinear",
        ),
    )
    with tf.Graph().as_default():
        train = train_step.build_train_graph(config, group, open_dataset(config.data))
        variables = tf1.global_variables()
        initializer = tf1.global_variables_initializer()
        feeds = {
            variable.initializer.inputs[1]: value
            for variable in variables
            if (value := initial_value(variable.op.name, tuple(variable.shape))) is not None
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
      name: the name of the case in the file.
      precision: float32 or bfloat16.
      kernels: off or on.
      losses: the loss of each step.
    """

    name: str
    precision: str
    kernels: str
    losses: list[float]


def is_in_suite(name, precision, setting, workers):
    """Returns whether the tests compute a case: each precision and number of workers, by network.

    A graph of the large network takes some 10 s: of its eight, the tests build three.
    """
    if name == "small" or (precision, workers) == ("bfloat16", 1):
        return True
    return (precision, setting, workers) == ("float32", kernel_settings()[-1], 2)


def compute_cases(group, names=tuple(NETWORKS), is_wanted=is_in_suite):
    """The losses of the cases that this machine can compute with the workers that there are."""
    cases = []
    workers = group.worker.size
    for name, precision, setting in itertools.product(names, PRECISIONS, kernel_settings()):
        if is_wanted(name, precision, setting, workers):
            with kernels(setting):
                losses = compute_losses(group, NETWORKS[name], precision)
            case = f"{name}, {precision}, {workers} workers"
            cases.append(Case(case, precision, setting, losses))
    return cases


def find_difference(case):
    """Returns how far losses are from the golden ones, in words; empty within the tolerance."""
    golden = json.loads(FILE.read_text(encoding="utf-8"))[case.name]
    if np.shape(case.losses) == np.shape(golden):
        first, growth, last = NETWORKS[case.name.split(",")[0]].tolerances[case.precision]
        tolerances = np.minimum(first * float(growth) ** np.arange(len(golden)), last)
        if (np.abs(np.subtract(case.losses, golden)) <= tolerances * np.abs(golden)).all():
            return ""
    return f"{case.name}, kernels {case.kernels}: {case.losses}, not {golden}"


def launch(workers, folder, *arguments):
    """The cases of each worker of a horovodrun, or of one process, in order of rank."""
    arguments = [__file__, str(folder), *arguments]
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


def compute_all():
    """All cases of all numbers of workers, as rank 0 sees them."""
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            yield from launch(workers, folder, "--all")[0]


def record():
    """Writes the file of golden losses."""
    rows = [
        f"  {json.dumps(case.name)}: {json.dumps(case.losses)}"
        for case in compute_all()
        if case.kernels == "off"
    ]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def check():
    """Tells what differs; returns the exit status."""
    differences = [find_difference(case) for case in compute_all()]
    print(*filter(None, differences), f"{len(differences)} cases compared", sep="\n")
    return int(any(differences))


def main():
    """Runs the command line."""
    if sys.argv[1] == "--record":
        return record()
    if sys.argv[1] == "--check":
        return check()
    is_wanted = (lambda *case: True) if "--all" in sys.argv[2:] else is_in_suite
    group = distributed.connect()
    file = Path(sys.argv[1], f"losses_{group.worker.rank}.json")
    file.write_text(json.dumps(compute_cases(group, is_wanted=is_wanted)), encoding="utf-8")
    group.shutdown()
    return 0


if __name__ == "__main__":
    QuickExit().exit(main())
