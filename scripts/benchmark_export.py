#!/usr/bin/env python3
"""How fast an exported network is beside its checkpoint's own graph, from pixels to logits.

  scripts/benchmark_export.py --exported=DIR --checkpoint=runs/one/model.ckpt-270 [--onnx=DIR]

The checkpoint's graph is run by TensorFlow's own operations, without the compiled kernels; the
exported one as `tf.saved_model.load` gives it; both with oneDNN, as TensorFlow has it by default
on CPUs with AVX-512 or AMX, and without, as on others. With --onnx ONNX Runtime runs the same
network as --export_format=onnx gives it. Each is a process of its own, with all cores. They take
turns; what counts is the median of the rounds' ratios, since a machine's speed drifts. What is told
of the CPU's time means something on a busy machine, too.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from shared import loaded_tensorflow, program  # noqa: F401

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import model_file, restore
from trainer.config import Config
from trainer.cpu_kernels import switch
from trainer.errors import UserError
from trainer.graph.network import classify
from trainer.machine import session
from trainer.modes.export import onnx_model, signatures

_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_CHECKPOINT, _EXPORTED, _ONNX = "checkpoint", "exported", "onnx"

Run = Callable[[Any], Any]


class Turn(NamedTuple):
    """The images of a turn per second, and per second of the CPU in all threads."""

    images_per_sec: float
    images_per_cpu_sec: float


def load_checkpoint(config: Config, prefix: str) -> Run:
    """Returns a function from pixels to logits, by the checkpoint's graph in a session."""
    size = config.data.evaluation_size
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.uint8, [None, size, size, 3])
        logits = classify(config, images, num_classes=restore.count_classes(prefix))
        own = tf1.Session(config=session.create_config())
        restore.restore_weights(own, prefix, restore.network_variables())

    def run(pixels: Any) -> Any:
        return own.run(logits, {images: pixels})

    return run


def load_exported(folder: str) -> Run:
    """Returns a function from pixels to logits, by the signature `images`."""
    loaded = tf.saved_model.load(folder)

    def run(pixels: Any) -> Any:
        return loaded.signatures["images"](images=tf.constant(pixels))["logits"].numpy()

    return run


def load_onnx(folder: str) -> Run:
    """Returns a function from pixels to logits, by ONNX Runtime."""
    import onnxruntime

    loaded = onnxruntime.InferenceSession(
        os.path.join(folder, onnx_model.NAME), providers=["CPUExecutionProvider"]
    )

    def run(pixels: Any) -> Any:
        return loaded.run(["logits"], {signatures.PIXELS_INPUT: pixels})[0]

    return run


def read_config(exported: str) -> Config:
    """Returns the configuration of an exported network."""
    described = model_file.read(program.path(exported))
    if described is None:
        raise UserError(f"{exported} has no model.json: give what --mode=export has made")
    return model_file.apply(Config(), described)


def take_turn(run: Run, pixels: Any, seconds: float) -> Turn:
    """Times runs that take some seconds in all, and at least one."""
    wall, cpu, runs = time.perf_counter(), time.process_time(), 0
    while not runs or time.perf_counter() - wall < seconds:
        run(pixels)
        runs += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(runs * len(pixels) / wall, runs * len(pixels) / cpu)


def answer(connection: Connection, network: str, path: str, exported: str) -> None:
    """Runs a network's turns in a process: of (batch size, seconds) each, until it is closed."""
    config = read_config(exported)
    if network == _CHECKPOINT:
        run = load_checkpoint(config, path)
    else:
        run = load_exported(path) if network == _EXPORTED else load_onnx(path)
    size = config.data.evaluation_size
    while True:
        try:
            batch_size, seconds = connection.recv()
        except EOFError:
            return
        shape = (batch_size, size, size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        connection.send(tuple(take_turn(run, pixels, seconds)))


def start(network: str, onednn: str, options: argparse.Namespace) -> Connection:
    """Starts the process of a network; returns the connection to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, network, str(getattr(options, network)), str(options.exported))
    # Both are read when TensorFlow, or the kernels, are loaded there.
    os.environ |= {_ONEDNN: onednn, switch.VARIABLE: "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    context.Process(target=answer, args=arguments, daemon=True).start()
    there.close()
    return here


def ask(connection: Connection, batch_size: int, seconds: float) -> Turn:
    """Makes a process take its turn."""
    try:
        connection.send((batch_size, seconds))
        return Turn(*connection.recv())
    except (EOFError, ConnectionError) as error:
        raise UserError("the process of a network has ended; see above") from error


def _name(network: str, onednn: str) -> str:
    return network if network == _ONNX else f"{network}, oneDNN={onednn}"


def summarize(turns: dict[tuple[str, str], list[Turn]]) -> dict[str, Any]:
    """Returns medians of each network, and of the SavedModel's ratios to the others."""
    found: dict[str, Any] = {}
    names = {(network, value): _name(network, value) for network, value in turns}
    for field in Turn._fields:
        rates = {key: [getattr(turn, field) for turn in each] for key, each in turns.items()}
        medians = {names[key]: round(statistics.median(each), 2) for key, each in rates.items()}
        others = [key for key in turns if key[0] != _EXPORTED]
        for mine, theirs in itertools.product(((_EXPORTED, "0"), (_EXPORTED, "1")), others):
            pairs = zip(rates[mine], rates[theirs], strict=True)
            ratio = statistics.median(my_rate / their_rate for my_rate, their_rate in pairs)
            medians[f"{names[mine]} / {names[theirs]}"] = round(ratio, 3)
        found[field] = medians
    return found


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--exported", type=program.path, required=True, help="--export_dir")
    parser.add_argument("--checkpoint", required=True, help="prefix of the exported checkpoint")
    parser.add_argument("--onnx", type=program.path, help="--export_dir of --export_format=onnx")
    parser.add_argument(
        "--batch_sizes", type=program.whole_numbers, default="1,32", help="%(default)s"
    )
    parser.add_argument("--rounds", type=program.at_least(1), default=10, help="%(default)s")
    parser.add_argument(
        "--seconds", type=program.at_least(0, float), default=4.0, help="per turn; %(default)s"
    )
    options = parser.parse_args()
    found: dict[str, Any] = {"image_size": read_config(str(options.exported)).data.evaluation_size}
    networks = [*itertools.product((_CHECKPOINT, _EXPORTED), "01")]
    networks += [] if options.onnx is None else [(_ONNX, "0")]
    processes = {each: start(*each, options) for each in networks}
    for batch_size in options.batch_sizes:
        turns: dict[tuple[str, str], list[Turn]] = {each: [] for each in processes}
        for connection in processes.values():
            for _ in range(2):
                ask(connection, batch_size, options.seconds / 2)
        for number in range(options.rounds):
            for each in list(processes)[:: -1 if number % 2 else 1]:
                turns[each].append(ask(processes[each], batch_size, options.seconds))
        found[f"batch {batch_size}"] = summarize(turns)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    program.run(main)
