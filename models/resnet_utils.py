"""The parts of residual networks, with the names and signatures of slim's resnet_utils.

A map is a tensor [batch, height, width, channels] of float32, bfloat16 or float16.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from models.arg_scopes import resnet_arg_scope
from models.slim_compat import slim

tf1 = tf.compat.v1

__all__ = [
    "Block",
    "conv2d_same",
    "resnet_arg_scope",
    "stack_blocks_dense",
    "subsample",
]


class Block(NamedTuple):
    """A stage of a residual network.

    Attributes:
      scope: the name of the stage's variable scope, such as `block1`.
      unit_fn: the function that builds one unit: `unit_fn(map, rate=..., **arguments) -> map`.
      args: the arguments of each unit, as a mapping or as (depth, depth_bottleneck, stride).
    """

    scope: str
    unit_fn: Callable[..., tf.Tensor]
    args: Sequence[Mapping[str, int] | tuple[int, int, int]]


def subsample(inputs: tf.Tensor, factor: int, scope: str | None = None) -> tf.Tensor:
    """Picks every `factor`-th row and column of a map, from the first on.

    Returns:
      [batch, ceil(height / factor), ceil(width / factor), channels].
    """
    if factor == 1:
        return inputs
    return slim.max_pool2d(inputs, [1, 1], stride=factor, scope=scope)


def conv2d_same(
    inputs: tf.Tensor,
    num_outputs: int,
    kernel_size: int,
    stride: int,
    rate: int = 1,
    scope: str | None = None,
) -> tf.Tensor:
    """Adds a convolution whose stride only picks from the outputs of the same one without stride.

    TensorFlow's SAME pads a strided convolution by the parity of the map's size, which would shift
    the picked positions. Here the padding depends on the kernel alone, so that this equals
    `subsample(conv2d(inputs, stride=1, padding="SAME"), stride)`.

    Args:
      inputs: a map [batch, height, width, channels].
      num_outputs: the number of channels of the result.
      kernel_size: the height and width of the kernel, pixels; odd.
      stride: the distance of the positions that are picked, pixels.
      rate: the distance of the kernel's taps, pixels (atrous convolution where above 1).
      scope: the name of the variable scope.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), num_outputs].
    """
    if stride == 1:
        return slim.conv2d(
            inputs,
            num_outputs,
            kernel_size,
            stride=1,
            rate=rate,
            padding="SAME",
            scope=scope,
        )
    padding = (kernel_size - 1) * rate
    before, after = padding // 2, padding - padding // 2
    padded = tf.pad(inputs, [[0, 0], [before, after], [before, after], [0, 0]])
    return slim.conv2d(
        padded,
        num_outputs,
        kernel_size,
        stride=stride,
        rate=rate,
        padding="VALID",
        scope=scope,
    )


def _unit_arguments(unit: Mapping[str, int] | tuple[int, int, int]) -> dict[str, int]:
    if isinstance(unit, Mapping):
        return dict(unit)
    return dict(zip(("depth", "depth_bottleneck", "stride"), unit, strict=True))


@slim.add_arg_scope
def stack_blocks_dense(
    net: tf.Tensor,
    blocks: Sequence[Block],
    output_stride: int | None = None,
    outputs_collections: Any = None,
) -> tf.Tensor:
    """Builds the units of all blocks in order, in scopes `<block>/unit_1`, `<block>/unit_2`, ...

    Once the map has been reduced by `output_stride`, further strides turn into rates: the same
    weights see the same pixels, on a denser map (arXiv:1606.00915).

    Args:
      net: a map [batch, height, width, channels].
      blocks: the stages, in order.
      output_stride: the ratio of `net`'s height to the result's. It must be the product of the
        first units' strides, up to some unit. None: the product of all.
      outputs_collections: the graph collection, or collections, to which each block's result is
        added.

    Returns:
      [batch, ceil(height / output_stride), ceil(width / output_stride), channels of the last unit].

    Raises:
      ValueError: no unit ends at `output_stride`.
    """
    stride = rate = 1
    for block in blocks:
        with tf1.variable_scope(block.scope, "block", [net]) as block_scope:
            for number, unit in enumerate(block.args, start=1):
                arguments = _unit_arguments(unit)
                unit_stride = arguments.get("stride", 1)
                with tf1.variable_scope(f"unit_{number}", values=[net]):
                    if stride == output_stride:
                        net = block.unit_fn(net, rate=rate, **(arguments | {"stride": 1}))
                        rate *= unit_stride
                    else:
                        net = block.unit_fn(net, rate=1, **arguments)
                        stride *= unit_stride
            net = slim.utils.collect_named_outputs(outputs_collections, block_scope.name, net)
    if output_stride is not None and stride != output_stride:
        raise ValueError(
            f"output_stride: must be a product of the first units' strides, got {output_stride:g} "
            f"for units that reach {stride}"
        )
    return net
