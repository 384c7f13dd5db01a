"""Figures of scaling that others have published, beside those of scale_model. For scaling.py.

Inputs are the published rate of one GPU (where there is none: of the fewest GPUs), the gradients of
the network, and the nominal rates of the links. Slow workers, and inputs that cannot keep up, are
not among them: the model's figures are the most that the links allow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from shared import scale_model
from shared.scale_model import Gradient, Knobs, Link, Work

# Latencies of a ring's steps, and of a collective: NCCL's own estimates (github.com/NVIDIA/nccl,
# src/graph/tuning.cc: hwLat of rings with the protocol "Simple", NVLINK and NET; baseLat).
NVLINK_LATENCY_SEC, NETWORK_LATENCY_SEC, START_SEC = 3.4e-6, 14.0e-6, 8.4e-6

# Each way and GPU, as NVIDIA's data sheets have it: P100 80, V100 150, A100 300 GB/s.
P100 = Link(NVLINK_LATENCY_SEC, 80e9)
V100 = Link(NVLINK_LATENCY_SEC, 150e9)
A100 = Link(NVLINK_LATENCY_SEC, 300e9)
# 4 Pascal GPUs of a server without NVLink: PCIe 3.0 x 16, 8 GT/s with 128b/130b. NCCL: 5.7 us.
PCIE3 = Link(5.7e-6, 15.75e9)

_HOROVOD = "github.com/horovod/horovod, docs/benchmarks.rst; arXiv:1802.05799, section 6"
_NVIDIA = (
    "github.com/NVIDIA/DeepLearningExamples, TensorFlow/Classification/ConvNets/resnet50v1.5, "
    "README.md, weak scaling"
)
_TENSORFLOW = (
    "github.com/tensorflow/tensorflow, tensorflow/docs_src/performance/benchmarks.md, May 2017"
)
# Horovod's defaults of 2018 (64 MiB, 5 ms) and of 0.19 (128 MiB, 1 ms).
_OLD = Knobs(fusion_bytes=64 * 2**20, cycle_sec=5e-3)


def network(gbit_per_sec: float) -> Link:
    """Returns a link between hosts of a nominal rate."""
    return Link(NETWORK_LATENCY_SEC, gbit_per_sec * 1e9 / 8)


class Point(NamedTuple):
    """A published point.

    Attributes:
      name: the network, and the machines that trained it.
      source: the place where it stands.
      network: name of the network's gradients.
      batch_size: images of a GPU.
      images_per_sec: the rate of one GPU.
      gpus: number of GPUs, and of those that it is compared with.
      per_host: GPUs of a host.
      efficiency: the published efficiency.
      inside, between: links in and between hosts.
      knobs: fusion, cycle and type.
    """

    name: str
    source: str
    network: str
    batch_size: int
    images_per_sec: float
    gpus: tuple[int, int]
    per_host: int
    efficiency: float
    inside: Link
    between: Link = Link(0.0, 1.0)
    knobs: Knobs = Knobs()


_RESNET = ("resnet_v2_50", "resnet_v2_101")
POINTS = (
    Point(
        "ResNet-50, 8 A100 of a host, TF32",
        f"{_NVIDIA}: 909 and 7000 images/s",
        *(_RESNET[0], 256, 909.0, (8, 1), 8, 7000 / 8 / 909, A100),
    ),
    Point(
        "ResNet-50, 8 A100 of a host, mixed precision",
        f"{_NVIDIA}: 2375 and 17400 images/s",
        *(_RESNET[0], 256, 2375.0, (8, 1), 8, 17400 / 8 / 2375, A100),
    ),
    Point(
        "ResNet-50, 8 V100 of a host, float32",
        f"{_NVIDIA}: 412 and 3170 images/s",
        *(_RESNET[0], 128, 412.0, (8, 1), 8, 3170 / 8 / 412, V100),
    ),
    Point(
        "ResNet-50, 8 V100 of a host, mixed precision",
        f"{_NVIDIA}: 1270 and 9510 images/s",
        *(_RESNET[0], 256, 1270.0, (8, 1), 8, 9510 / 8 / 1270, V100),
    ),
    Point(
        "ResNet-50, 16 V100 of a host, mixed precision",
        f"{_NVIDIA}: 1300 and 17250 images/s",
        *(_RESNET[0], 256, 1300.0, (16, 1), 16, 17250 / 16 / 1300, V100),
    ),
    Point(
        "VGG-16, 8 P100 of a host, NCCL",
        f"{_TENSORFLOW}: 154 and 1081 images/s",
        *("vgg16", 64, 154.0, (8, 1), 8, 1081 / 8 / 154, P100),
    ),
    Point(
        "ResNet-50, 256 P100, 50 Gbit/s, against 8",
        "arXiv:1706.02677: about 90 %; the rate of one P100 at this batch from " + _TENSORFLOW,
        *(_RESNET[0], 32, 195.0, (256, 8), 8, 0.90, P100, network(50)),
    ),
    Point(
        "ResNet-101, 512 Pascal GPUs, 25 Gbit/s",
        f"{_HOROVOD}: 90 %; 1656.82 images/s of 16 GPUs there",
        *(_RESNET[1], 64, 1656.82 / 16, (512, 1), 4, 0.90, PCIE3, network(25), _OLD),
    ),
    Point(
        "VGG-16, 512 Pascal GPUs, 25 Gbit/s",
        f"{_HOROVOD}: 68 %; the rate of one P100 from {_TENSORFLOW}",
        *("vgg16", 64, 154.0, (512, 1), 4, 0.68, PCIE3, network(25), _OLD),
    ),
)


def vgg16() -> tuple[Gradient, ...]:
    """Returns the gradients of VGG-16 (arXiv:1409.1556, table 1, D) at 224 px, last layer first."""
    layers = []  # (parameters, multiplications of the forward pass)
    size, channels = 224, 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers.append((9 * channels * width + width, 9 * channels * width * size * size))
            channels = width
        size //= 2
    for inputs, outputs in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)):
        layers.append((inputs * outputs + outputs, inputs * outputs))
    forward = sum(work for _, work in layers)
    # Backward, each layer but the first has two products of that size: by inputs and by weights.
    total, done = 3 * forward - layers[0][1], float(forward)
    gradients = []
    for number, (parameters, work) in reversed(list(enumerate(layers))):
        done += work * (2 if number else 1)
        gradients.append(Gradient(4.0 * parameters, done / total))
    return tuple(gradients)


def predict(point: Point, gradients: Sequence[Gradient]) -> float:
    """Returns the efficiency of a point by the model."""
    work = Work(tuple(gradients), point.batch_size / point.images_per_sec)

    def efficiency(gpus: int) -> float:
        if gpus == 1:
            return 1.0
        per_host = min(gpus, point.per_host)
        cost = ring_cost(gpus // per_host, per_host, point.inside, point.between)
        return scale_model.efficiency(work, gpus, cost, scale_model.never_busy, point.knobs)

    gpus, fewest = point.gpus
    return efficiency(gpus) / efficiency(fewest)


def ring_cost(
    hosts: int, per_host: int, inside: Link, between: Link, *, is_hierarchical: bool = False
) -> Callable[[float], float]:
    """Returns the time of an all-reduce over GPUs as a function of its bytes."""
    algorithm = scale_model.hierarchical_sec if is_hierarchical else scale_model.flat_ring_sec
    return lambda size: START_SEC + algorithm(size, hosts, per_host, inside, between)


def format_points(gradients: Mapping[str, Sequence[Gradient]]) -> str:
    """Returns a table of all points: published, by the model, and the difference in points."""
    lines = [f"{'':48}{'published':>10}{'model':>8}{'points':>8}"]
    for point in POINTS:
        predicted = predict(point, gradients[point.network])
        difference = 100 * (predicted - point.efficiency)
        lines.append(
            f"{point.name:48}{100 * point.efficiency:9.1f}%{100 * predicted:7.1f}%"
            f"{difference:+8.1f}"
        )
    return "\n".join(lines)
