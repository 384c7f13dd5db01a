"""A contestant of compare_peers.py: the same network in PyTorch; runs in the peers' environment.

usage: python -m peers.torch_resnet plain|compile

slim's ResNet-v2-50: the stride sits in a block's last unit, and convolutions without BN behind them
have a bias. Tuned as a good user would: channels_last, autocast, torch.compile on or off.
"""

import functools
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from peers.protocol import Case, Prepared, serve

_BLOCKS = ((64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1))  # bottleneck, units, stride
_EXPANSION = 4


def _norm(channels: int) -> nn.Module:
    # PyTorch's momentum is the share of the new value: slim's decay is 0.997.
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-5, momentum=0.003), nn.ReLU(inplace=True))


class Unit(nn.Module):
    """A bottleneck with pre-activation: [batch, channels, height, width], strided."""

    def __init__(self, channels: int, bottleneck: int, stride: int) -> None:
        super().__init__()
        depth = _EXPANSION * bottleneck
        self.stride = stride
        self.preact = _norm(channels)
        self.shortcut = None if channels == depth else nn.Conv2d(channels, depth, 1, stride)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, bottleneck, 1, bias=False),
            _norm(bottleneck),
            nn.Conv2d(bottleneck, bottleneck, 3, stride, padding=1, bias=False),
            _norm(bottleneck),
            nn.Conv2d(bottleneck, depth, 1),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        preact = self.preact(inputs)
        if self.shortcut is not None:
            shortcut = self.shortcut(preact)
        elif self.stride > 1:
            shortcut = functional.max_pool2d(inputs, 1, self.stride)
        else:
            shortcut = inputs
        return shortcut + self.residual(preact)


def create_network() -> nn.Module:
    """ResNet-v2-50 with 1000 classes."""
    # ceil_mode: as TensorFlow's SAME on an even-sized map.
    layers = [nn.Conv2d(3, 64, 7, 2, padding=3), nn.MaxPool2d(3, 2, ceil_mode=True)]
    channels = 64
    for bottleneck, units, stride in _BLOCKS:
        for number in range(1, units + 1):
            layers.append(Unit(channels, bottleneck, stride if number == units else 1))
            channels = _EXPANSION * bottleneck
    layers += [_norm(channels), nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1000, 1), nn.Flatten()]
    return nn.Sequential(*layers)


def prepare(case: Case, *, compiled: bool) -> Prepared:
    """Builds the network and the step."""
    torch.compiler.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    network = create_network().to(device, memory_format=torch.channels_last)
    shape = (case.batch_size, 3, case.image_size, case.image_size)
    images = torch.rand(shape, device=device).mul_(2).sub_(1)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, shape[:1], device=device)
    network.train(case.task == "train")
    run = torch.compile(network) if compiled else network
    autocast = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=case.precision == "bfloat16"
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def forward(network: Callable[[torch.Tensor], torch.Tensor]) -> float:
        with torch.inference_mode(), autocast():
            return network(images).max().item()

    def train(network: Callable[[torch.Tensor], torch.Tensor]) -> float:
        with autocast():
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    step = forward if case.task == "forward" else train
    with FlopCounterMode(display=False) as counter:
        step(network)
    return Prepared(
        step=functools.partial(step, run),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gflops_per_image=counter.get_total_flops() / case.batch_size / 1e9,
    )


if __name__ == "__main__":
    serve(functools.partial(prepare, compiled=sys.argv[1] == "compile"))
