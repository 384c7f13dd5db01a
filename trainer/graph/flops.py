"""Counts floating-point operations of convolutions and matrix products, from static shapes.

A multiplication and the addition that follows count as two, and all of the definition's count: an
implementation may need fewer (cpu_kernels/src/winograd.h). Everything else in a network (BN, ReLU,
pools, sums) is left out: it is limited by memory, not by arithmetic.
"""

import math
from collections.abc import Iterable

import tensorflow as tf

from trainer.graph import scopes


def _elements(shape: tf.TensorShape, op: tf.Operation) -> int:
    if not shape.is_fully_defined():
        raise ValueError(f"operation {op.name}: must have static shapes to be counted, got {shape}")
    return math.prod(shape.as_list())


def count_op_flops(op: tf.Operation) -> int:
    """Counts an operation's FLOP: 0 for all but convolutions, their gradients and products.

    Args:
      op: operation of any type; the batch size is a part of its shapes.

    Raises:
      ValueError: a shape that the count needs is not static.
    """
    match op.type:
        case "Conv2D" | "DepthwiseConv2dNative":
            result, kernel = op.outputs[0].shape, op.inputs[1].shape
        case "Conv2DBackpropInput" | "DepthwiseConv2dNativeBackpropInput":
            result, kernel = op.inputs[2].shape, op.inputs[1].shape
        case "Conv2DBackpropFilter" | "DepthwiseConv2dNativeBackpropFilter":
            result, kernel = op.inputs[2].shape, op.outputs[0].shape
        case "SlimHorovodFilterGradient":
            result, kernel = op.inputs[1].shape, op.outputs[0].shape
        case "BatchMatMulV2":
            left = op.inputs[0].shape
            summed = left[-2:-1] if op.get_attr("adj_x") else left[-1:]
            return 2 * _elements(op.outputs[0].shape, op) * _elements(summed, op)
        case "MatMul":
            left = op.inputs[0].shape
            summed = left[:1] if op.get_attr("transpose_a") else left[1:]
            return 2 * _elements(op.outputs[0].shape, op) * _elements(summed, op)
        case _:
            return 0
    # kernel: [height, width, channels in, channels out]. Each element of a convolution's result is
    # a sum over the first three, or, depthwise, where each has one channel, over the first two;
    # both gradients run through the same products.
    summed = kernel[:2] if op.type.startswith("Depthwise") else kernel[:3]
    return 2 * _elements(result, op) * _elements(summed, op)


def count_flops(operations: Iterable[tf.Operation]) -> int:
    """Counts the FLOP of running each of the operations once, for the whole batch.

    What --recompute runs again is left out: no definition of a network has it twice.

    Args:
      operations: `graph.get_operations()` for all that was built, `list_needed_operations(...)` for
        what a step runs.
    """
    return sum(count_op_flops(op) for op in operations if not _runs_again(op))


def count_flops_again(operations: Iterable[tf.Operation]) -> int:
    """Counts, likewise, the FLOP of what --recompute runs again."""
    return sum(count_op_flops(op) for op in operations if _runs_again(op))


def _runs_again(op: tf.Operation) -> bool:
    return op.name.startswith(scopes.RECOMPUTED)


def list_needed_operations(targets: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Lists the operations that a session runs for the targets: they and all that they need.

    A graph holds more: for example the gradient of the first convolution with respect to its
    images, which nothing uses. Where something waits for such an operation through a control input,
    TensorFlow removes it, as it does with every operation that has no effect but its result.
    """
    needed: dict[tf.Operation, None] = {}
    waited_for: set[tf.Operation] = set()
    waiting = [(op, True) for op in targets]
    while waiting:
        op, is_used = waiting.pop()
        is_needed = is_used or op.op_def.is_stateful
        if op in needed or (op in waited_for and not is_needed):
            continue
        if is_needed:
            needed[op] = None
        else:
            waited_for.add(op)
        waiting += [(tensor.op, is_needed) for tensor in op.inputs]
        waiting += [(before, False) for before in op.control_inputs]
    return list(needed)
