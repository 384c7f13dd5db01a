"""Measures how fast the device can multiply: the limit that a pass is compared with."""

import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.graph import flops, precision
from trainer.machine import session
from trainer.machine.load import LoadMeter
from trainer.process import files, host_cores

# Runs are made to take at least this long, so that the cost of launching them does not count.
_LEAST_SEC = 0.03
_REPEATS = 12
_TRIES = 3
# Two measurements of the same rate differ by this much on a quiet machine.
TOLERANCE = 1.02
# Not a setting, but a message to the processes of a sweep: the file in which they share the peak.
_SHARED_FILE = "SLIM_HOROVOD_PEAK"


@dataclasses.dataclass(frozen=True)
class Peak:
    """The rate that the device was measured to keep up at most, in a precision.

    Attributes:
      gflops: GFLOP/s of the median run of the fastest work, all of which were made; or that of a
        pass that was faster.
      lowest_gflops: GFLOP/s of the slowest run of the same work.
      highest_gflops: GFLOP/s of the fastest one.
      runs: number of these runs.
      others_share: share of the cores, 0 to 1, that other processes took meanwhile; None where it
        can't be told, or where the device is a GPU.
    """

    gflops: float
    lowest_gflops: float
    highest_gflops: float
    runs: int
    others_share: float | None


def _create_operand(shape: list[int], dtype: tf.DType) -> tf.Tensor:
    """Returns a variable with random values, so that no run has to convert types."""
    return tf.Variable(tf.cast(tf.random.normal(shape), dtype)).read_value()


def _build_product(dtype: tf.DType, size: int) -> tf.Tensor:
    """Builds a matrix product [size, size] x [size, size]."""
    left, right = (_create_operand([size, size], dtype) for _ in range(2))
    return tf.matmul(left, right)


def _build_pointwise(dtype: tf.DType, size: int) -> tf.Tensor:
    """Builds a 1x1 convolution with `size` channels of maps [28, 28], which all make in full."""
    images = _create_operand([32, 28, 28, size], dtype)
    kernel = _create_operand([1, 1, size, size], dtype)
    return tf.nn.conv2d(images, kernel, 1, "SAME")


def _build_convolution(dtype: tf.DType, size: int) -> tf.Tensor:
    """Builds a 3x3 convolution with `size` channels of maps [28, 28]."""
    images = _create_operand([32, 28, 28, size], dtype)
    kernel = _create_operand([3, 3, size, size], dtype)
    return tf.nn.conv2d(images, kernel, 1, "SAME")


def _measure(
    build: Callable[[tf.DType, int], tf.Tensor],
    dtype: tf.DType,
    size: int,
    config: tf1.ConfigProto,
) -> tuple[int, list[float]]:
    """Returns the FLOP of a run, and the durations of some runs in seconds."""
    with tf.Graph().as_default() as graph:
        result = build(dtype, size)
        # One element leaves the device: all are computed, and no time goes into copies.
        fetch = tf.reshape(result, [-1])[0]
        work = flops.count_flops(graph.get_operations())
        with tf1.Session(config=config) as peak_session:
            peak_session.run(tf1.global_variables_initializer())
            run_once = peak_session.make_callable(fetch)
            run_once()
            durations_sec = []
            for _ in range(_REPEATS):
                began = time.perf_counter()
                run_once()
                durations_sec.append(time.perf_counter() - began)
    return work, durations_sec


def measure_peak(dtype: tf.DType, config: tf1.ConfigProto) -> Peak:
    """Measures the highest rate that the device keeps up in `dtype`.

    It is the best of a matrix product, a 1x1 convolution and TensorFlow's own 3x3 convolution, none
    of which has fewer multiplications than its definition: oneDNN's and Eigen's algorithms are
    direct (`ONEDNN_VERBOSE=1` names them), and the compiled kernels' tiles are left out. Each is
    made larger until a run takes long enough, and each size counts with its median run: a pass
    counts with the mean of its own, and a single fast run is a moment in which the clock was high.

    Args:
      dtype: type of the operands.
      config: configuration of the session: its device and its threads.
    """
    load = LoadMeter(host_cores.available_cores())
    plain = tf1.ConfigProto()
    plain.CopyFrom(config)
    del plain.graph_options.rewrite_options.custom_optimizers[:]
    measured: list[list[float]] = []
    for build, smallest, used in (
        (_build_product, 1024, config),
        (_build_pointwise, 512, config),
        (_build_convolution, 128, plain),
    ):
        for size in (smallest * 2**doubling for doubling in range(5)):
            work, durations_sec = _measure(build, dtype, size, used)
            measured.append([work / duration_sec / 1e9 for duration_sec in durations_sec])
            if min(durations_sec) > _LEAST_SEC:
                break
    best = max(measured, key=statistics.median)
    is_on_cpu = session.step_device() == "/cpu:0"
    return Peak(
        gflops=statistics.median(best),
        lowest_gflops=min(best),
        highest_gflops=max(best),
        runs=len(best),
        others_share=load.others_share() if is_on_cpu else None,
    )


class DevicePeak:
    """The peak of the device in a precision, one for all that a benchmark times.

    A sweep's processes share it in a file, so that it is kept whatever ends one of them.

    Attributes:
      known: the peak as measured so far; None: it was not measured.
      is_shared: whether this process is one of a sweep's.
    """

    def __init__(self, precision_name: str) -> None:
        shared = os.environ.get(_SHARED_FILE)
        self._dtype = precision.compute_dtype(precision_name)
        self._file = None if shared is None else Path(shared)
        self.is_shared = shared is not None
        self.known = None if self._file is None else _read(self._file)

    def measure(self, achieved_gflops: float = 0.0) -> Peak:
        """Returns the peak.

        It is measured once; and again, a few times at most, while a pass has achieved more: other
        work on the machine, for instance, may have slowed the device down when it was measured. A
        pass that achieves more than the median run then, and no more than the fastest, tells
        itself what the device keeps up.
        """
        known, tries = self.known, 0
        while known is None or (known.gflops <= achieved_gflops and tries < _TRIES):
            found = measure_peak(self._dtype, session.create_config())
            known = found if known is None or found.gflops > known.gflops else known
            tries += 1
        if known.gflops < achieved_gflops <= TOLERANCE * known.highest_gflops:
            known = dataclasses.replace(known, gflops=achieved_gflops)
        self.known = known
        if self._file is not None:
            _write(self._file, known)
        return known

    @contextlib.contextmanager
    def shared(self, folder: Path) -> Iterator[dict[str, str]]:
        """Shares the peak with a process that runs meanwhile, through a file in `folder`.

        Yields:
          the environment variable by which that process finds the file.
        """
        file = folder / "peak.json"
        if self.known is not None:
            _write(file, self.known)
        try:
            yield {_SHARED_FILE: str(file)}
        finally:
            self.known = _read(file) or self.known


def _write(file: Path, peak: Peak) -> None:
    files.write_text(file, json.dumps(dataclasses.asdict(peak)))


def _read(file: Path) -> Peak | None:
    return Peak(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
