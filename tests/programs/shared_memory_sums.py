"""One of three workers: Horovod's sums against numpy, through shared memory and through Gloo.

usage: shared_memory_sums.py shared|gloo

Prints which sums were wrong, and how many workers' buffers are mapped.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

import fast_tensorflow  # noqa: F401
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

PIECE = 2**20  # Elements that pass at a time.
SIZES = (0, 1, 3, 15, 17, 1000, 4097, PIECE - 1, PIECE, PIECE + 5, 3 * PIECE + 7)


def find_wrong_sums(rounds):
    """Averages and sums of tensors of these sizes, one alone or many at once: what was wrong."""
    rng = np.random.default_rng(5)  # The same numbers on all workers.
    # Parts of one long row, since to draw all numbers anew would take most of the time.
    row = rng.normal(size=2 * max(SIZES))
    wrong = []
    for number in range(rounds):
        sizes = rng.choice(SIZES, size=rng.integers(1, 12))
        dtype = np.float64 if number % 5 == 4 else np.float32  # Gloo has the float64.
        values = []
        for _ in range(hvd.size()):
            starts = rng.integers(max(SIZES), size=len(sizes))
            parts = zip(starts, sizes, strict=True)
            values.append([row[start : start + size].astype(dtype) for start, size in parts])
        op = hvd.Average if number % 2 else hvd.Sum
        got = hvd.grouped_allreduce(
            [tf.constant(value) for value in values[hvd.rank()]], op=op, name=f"sums/{number}"
        )
        for index, of_workers in enumerate(zip(*values, strict=True)):
            expected = sum(of_workers[1:], of_workers[0])  # In order of rank; Gloo has another.
            if op == hvd.Average:
                expected = expected * dtype(1 / hvd.size())
            exact = shared_buffers() > 0 and dtype == np.float32
            found = got[index].numpy()
            tolerance = 0 if exact else 1e-5 * (1 + np.abs(expected))
            if not (np.abs(found - expected) <= tolerance).all():
                wrong.append((number, index, sizes[index]))
    return wrong


def shared_buffers():
    """Returns how many workers' buffers this one has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:slim-horovod")


@contextlib.contextmanager
def no_new_files():
    """Prevents this process from opening any file inside."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def main():
    """Computes sums with shared memory; or without, since one worker can't have it."""
    hvd.init()
    # What TensorFlow opens at its first operation is open then; float64 is Gloo's.
    hvd.allreduce(tf.constant([1.0], tf.float64), name="float64")
    value = tf.constant([1.0])
    lacks = sys.argv[1] == "gloo" and hvd.rank() == 1
    with no_new_files() if lacks else contextlib.nullcontext():
        hvd.allreduce(value, name="first")
    print(f"{find_wrong_sums(20)} wrong, {shared_buffers()} buffers", flush=True)
    hvd.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
