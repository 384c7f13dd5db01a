"""Parts of a forward pass that --recompute computes again as a whole: see `recompute`."""

from collections.abc import Iterator, Sequence

import tensorflow as tf

NORM = "FusedBatchNormV3"
_COMPILED_GRADIENT = "SlimHorovodNormGradient"  # Of BN: see cpu_kernels/gradients.py.
_SUMS = ("Add", "AddV2", "AddN")
# What may follow on BN and takes little time beside a convolution: memory limits it.
_CHEAP = frozenset(("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Mul", "Cast"))


def find_units(activations: Sequence[tf.Operation]) -> Iterator[list[tf.Operation]]:
    """Yields the operations between the sums at the ends of residual units.

    A sum of two activations that nothing needs any more is such an end. What follows on the last
    one is no part: the backward pass begins there, and would compute it again at once.
    """
    last_use = {tensor.ref(): op for op in activations for tensor in op.inputs}
    activation = set(activations)
    part: list[tf.Operation] = []
    for op in activations:
        summands = [tensor for tensor in op.inputs if tensor.op in activation]
        is_end = (
            op.type in _SUMS
            and len(summands) > 1
            and (op.outputs[0].shape.rank or 0) > 2
            and all(last_use[tensor.ref()] == op for tensor in summands)
        )
        if is_end:
            yield part
            part = []
        else:
            part.append(op)


def find_cheap_parts(activations: Sequence[tf.Operation]) -> Iterator[list[tf.Operation]]:
    """Yields each layer of BN, with the cheap operations that follow on it.

    Its input is kept in any case, since its gradient needs that.
    """
    part_of: dict[tf.Operation, list[tf.Operation]] = {}
    for op in activations:
        before = [part_of[tensor.op] for tensor in op.inputs if tensor.op in part_of]
        if op.type == NORM:
            part_of[op] = [op]
        elif op.type in _CHEAP and before:
            part_of[op] = before[0]
            before[0].append(op)
    yield from (part for op, part in part_of.items() if op.type == NORM)


def find_free_parts(activations: Sequence[tf.Operation]) -> Iterator[list[tf.Operation]]:
    """Yields those layers of BN that take no time, with the ReLU that follows on each.

    They are compiled, and have their statistics by then. That the forward pass does not write to
    memory what nothing keeps makes up for what the backward pass computes (docs/experiments.md).
    """
    for part in find_cheap_parts(activations):
        norm, *behind = part
        if is_compiled(norm) and all(op.type == "Relu" for op in behind):
            yield part


def is_compiled(op: tf.Operation) -> bool:
    """Returns whether an operation is BN by the statistics of this batch, and will be compiled.

    Its gradient is compiled then: TensorFlow's would need an output that only its own BN has.
    """
    if op.type != NORM or op.get_attr("exponential_avg_factor") != 1:
        return False
    # A copy has the statistics of what it is a copy of.
    statistics = op.outputs[3] if op.get_attr("is_training") else op.inputs[3]
    return any(reader.type == _COMPILED_GRADIENT for reader in statistics.consumers())
