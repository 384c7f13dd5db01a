"""A model of a step's time on many workers, from what was measured on few. For scaling.py.

A step is simulated in the order of its graph: gradients become ready while the network goes
backward; Horovod looks for them once a cycle, fuses them into buffers, and averages these one by
one. What is measured goes in: the time to compute, the bytes and the order of gradients, the
latency and bandwidth of links. Nothing is fitted to the steps that come out.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from trainer.config.update import HOROVOD_BUFFER_MB

# Seconds that an all-reduce of some bytes takes.
Cost = Callable[[float], float]

_DRAWS = 20_000
_RESOLUTION = 1e-12  # Of shares and bytes: sums of floating-point numbers are not exact.


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient.

    Attributes:
      bytes: its size in float32.
      ready: share of the time of the forward and backward pass after which it is ready.
    """

    bytes: float
    ready: float


@dataclasses.dataclass(frozen=True)
class Link:
    """A link between neighbours of a ring, by Hockney's model: latency + bytes / bandwidth.

    (R. W. Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2", Parallel
    Computing 20 (1994).)

    Attributes:
      latency_sec: the latency of a message.
      bytes_per_sec: each way.
    """

    latency_sec: float
    bytes_per_sec: float


@dataclasses.dataclass(frozen=True)
class Line:
    """Seconds as a line over bytes.

    Attributes:
      start_sec: without any byte.
      sec_per_byte: slope.
    """

    start_sec: float
    sec_per_byte: float

    def __call__(self, size: float) -> float:
        return self.start_sec + self.sec_per_byte * size


@dataclasses.dataclass(frozen=True)
class Work:
    """The computation of a step.

    Attributes:
      gradients: the gradients in the order in which they become ready.
      compute_sec: forward and backward pass, alone.
      update_sec: the work that follows when the gradients are averaged.
      samples_sec: measured times of passes, of which `compute_sec` is the mean; empty: none vary.
    """

    gradients: tuple[Gradient, ...]
    compute_sec: float
    update_sec: float = 0.0
    samples_sec: tuple[float, ...] = ()

    def slowest_sec(self, workers: int, batches: int = 1) -> float:
        """Returns the mean time per batch of the slowest of some workers, which meet after some.

        Sums over several batches are drawn from the samples: fast ones make up for slow ones.
        """
        if not self.samples_sec:
            return self.compute_sec
        if batches == 1:
            return expected_maximum(self.samples_sec, workers)
        drawn = np.random.default_rng(0).choice(self.samples_sec, (_DRAWS, batches))
        return expected_maximum(drawn.mean(axis=1).tolist(), workers)


@dataclasses.dataclass(frozen=True)
class Knobs:
    """Settings that a person can choose.

    Attributes:
      fusion_bytes: --fusion_threshold_mb, in bytes.
      cycle_sec: HOROVOD_CYCLE_TIME.
      sent_share: bytes sent for each of float32: 0.5 with --gradient_compression.
      accumulate_steps: batches of an update.
    """

    fusion_bytes: float = HOROVOD_BUFFER_MB * 2**20
    cycle_sec: float = 1e-3
    sent_share: float = 1.0
    accumulate_steps: int = 1


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """Returns the line whose relative errors are least by their squares; nowhere below 0.

    Args:
      sizes: at least two different ones, bytes.
      seconds: above 0, for each size.
    """
    durations = np.asarray(seconds, float)
    columns = np.stack([np.ones(len(durations)), np.asarray(sizes, float)], axis=1)
    columns /= durations[:, None]
    start, slope = np.linalg.lstsq(columns, np.ones(len(durations)), rcond=None)[0]
    alone = columns.sum(axis=0) / np.square(columns).sum(axis=0)  # Each without the other.
    if start < 0:
        start, slope = 0.0, alone[1]
    elif slope < 0:
        start, slope = alone[0], 0.0
    return Line(float(start), float(slope))


def ring_sec(size: float, workers: int, link: Link) -> float:
    """Returns the time of a ring all-reduce: 2 (n - 1) steps, in each of which n-ths of it travel.

    The bandwidth is optimal: 2 (n - 1) / n times the bytes (P. Patarasuk and X. Yuan, "Bandwidth
    optimal all-reduce algorithms for clusters of workstations", JPDC 69 (2009), theorem 1); the
    latency is that of its steps (R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of
    Collective Communication Operations in MPICH", IJHPCA 19 (2005), section 4.5).
    """
    steps = 2 * (workers - 1)
    return steps * (link.latency_sec + size / workers / link.bytes_per_sec)


def flat_ring_sec(size: float, hosts: int, per_host: int, inside: Link, between: Link) -> float:
    """Returns the time of one ring through all GPUs of all hosts.

    Every host has one link out, at which the ring is as slow as that. Of its 2 (n - 1) steps
    2 (hosts - 1) have the latency of the network, the others that of the link inside, as in NCCL's
    own estimate (github.com/NVIDIA/nccl, src/graph/tuning.cc, ncclTopoTuneModel: nInterSteps).
    """
    workers = hosts * per_host
    if hosts == 1:
        return ring_sec(size, workers, inside)
    steps, out = 2 * (workers - 1), 2 * (hosts - 1)
    slowest = (
        min(between.bytes_per_sec, inside.bytes_per_sec)
        if per_host > 1
        else (between.bytes_per_sec)
    )
    latency_sec = out * between.latency_sec + (steps - out) * inside.latency_sec
    return latency_sec + steps * size / workers / slowest


def hierarchical_sec(size: float, hosts: int, per_host: int, inside: Link, between: Link) -> float:
    """Returns the time of a reduce-scatter within hosts, a ring over hosts, and an all-gather.

    As HOROVOD_HIERARCHICAL_ALLREDUCE does it (arXiv:1802.05799 has its rings; X. Jia et al.,
    arXiv:1807.11205, section 3.4, the three phases). The GPUs of a host share its link out: each
    sends its part, together all of it.
    """
    within = ring_sec(size, per_host, inside)  # Both phases within are the halves of a ring.
    steps = 2 * (hosts - 1)
    return within + steps * (between.latency_sec + size / hosts / between.bytes_per_sec)


def expected_maximum(samples: Sequence[float], workers: int) -> float:
    """Returns the mean of the greatest of `workers` independent draws from some samples.

    The i-th of m in order is the greatest with the probability (i / m)^n - ((i - 1) / m)^n (H. A.
    David and H. N. Nagaraja, "Order Statistics", 3rd edition, section 2.1). It is never above the
    greatest sample: of more workers than samples it is a lower bound.
    """
    ordered = np.sort(np.asarray(samples, float))
    shares = (np.arange(len(ordered) + 1) / len(ordered)) ** workers
    return float(np.dot(ordered, np.diff(shares)))


def fuse(sizes: Sequence[float], most: float) -> list[float]:
    """Returns the sizes of the buffers into which Horovod fuses neighbours, each up to `most`."""
    buffers: list[float] = []
    for size in sizes:
        if buffers and buffers[-1] + size <= most + _RESOLUTION:
            buffers[-1] += size
        else:
            buffers.append(size)
    return buffers


def put_into_buckets(gradients: Sequence[Gradient], most: float) -> tuple[Gradient, ...]:
    """Returns neighbours that are reduced together, each when its last one is ready."""
    buckets: list[Gradient] = []
    for each in gradients:
        if buckets and buckets[-1].bytes + each.bytes <= most:
            buckets[-1] = Gradient(buckets[-1].bytes + each.bytes, each.ready)
        else:
            buckets.append(each)
    return tuple(buckets)


def reduced_after_sec(
    gradients: Sequence[Gradient], compute_sec: float, cost: Cost, busy: Cost, knobs: Knobs
) -> float:
    """Simulates a forward and backward pass with its all-reduces; returns when both are over.

    Horovod's loop as in arXiv:1802.05799, section 5, and horovod/common/operations.cc: once a cycle
    it takes what is ready, fuses it, and averages buffer after buffer before the next cycle. When
    the last gradient is ready, the cycle ends early (scripts/horovod/patches/speed/01).

    Args:
      gradients: the gradients in the order in which they become ready.
      compute_sec: the pass by itself.
      cost: seconds that the all-reduce of a buffer takes.
      busy: part of these in which it takes the processor from the pass: 0 on GPUs.
      knobs: fusion, cycle and type.
    """
    now = computed = 0.0
    waiting = list(gradients)
    while waiting:
        began = now
        ready = [each for each in waiting if each.ready * compute_sec <= computed + _RESOLUTION]
        waiting = waiting[len(ready) :]
        for size in fuse([knobs.sent_share * each.bytes for each in ready], knobs.fusion_bytes):
            took_sec = cost(size)
            free_sec = took_sec - min(busy(size), took_sec)
            computed = min(compute_sec, computed + free_sec)
            now += took_sec
        if waiting:
            pause_sec = min(max(began + knobs.cycle_sec - now, 0.0), compute_sec - computed)
            now, computed = now + pause_sec, computed + pause_sec
    return now + compute_sec - computed


def step_sec(work: Work, workers: int, cost: Cost, busy: Cost, knobs: Knobs) -> float:
    """Returns the time of an update of `knobs.accumulate_steps` batches."""
    slowest_sec = work.slowest_sec(workers, knobs.accumulate_steps)
    batches_before = knobs.accumulate_steps - 1
    reduced_sec = reduced_after_sec(work.gradients, slowest_sec, cost, busy, knobs)
    return batches_before * slowest_sec + reduced_sec + work.update_sec


def efficiency(work: Work, workers: int, cost: Cost, busy: Cost, knobs: Knobs) -> float:
    """Returns images per second and worker, as a share of those of one worker alone."""
    alone_sec = knobs.accumulate_steps * work.compute_sec + work.update_sec
    return alone_sec / step_sec(work, workers, cost, busy, knobs)


def never_busy(size: float) -> float:
    """Returns the seconds that a GPU's all-reduce takes from its pass: none."""
    del size
    return 0.0
