"""--recompute: activations that are computed again in the backward pass, and not kept until then.

The backward pass is built as always. Then its operations are given copies of what they read of the
forward pass: operations of the same kinds, on the same weights, which begin at a tensor that is
kept. Compiled BN gets the statistics that it found the first time. A copy waits until the first
gradient that needs it is about to be used, so that the tensors of one residual unit are in memory
at a time (arXiv:1604.06174). The same operations on the same numbers give the same bits.

Updates of moving statistics, random numbers, collectives, and whatever else has a state are no part
of a copy: what they gave the first time is used again, so they happen once.

TensorFlow's own graph optimizer has heuristics for it, which took the peak of a step of
resnet_v2_50 (bfloat16, batch 32) from 2,285 to 2,206 MiB alone; `tf.recompute_grad` needs functions
of variables that exist, which slim's layers, made inside, are not.
"""

import collections
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from trainer.config import ModelConfig
from trainer.graph import scopes
from trainer.graph.recomputed_parts import (
    NORM,
    find_cheap_parts,
    find_free_parts,
    find_units,
    is_compiled,
)

_PADS = frozenset(("Pad", "PadV2"))
# What reads a shape, not numbers.
SHAPE_READERS = frozenset(("Shape", "ShapeN", "Size", "Rank"))


class Recomputed(NamedTuple):
    """The extent of what is computed again of a forward pass.

    Attributes:
      parts: number of parts, each of which is computed again as a whole: residual units, or groups
        of cheap operations.
      operations: number of operations that run again.
      most_bytes: size of what is there of the largest part at a time.
    """

    parts: int
    operations: int
    most_bytes: int

    def describe(self, kind: str) -> tuple[str, ...]:
        """Returns a line about what the flag does with this network, if it names parts."""
        if kind in ("auto", "none"):
            return ()
        parts = {"norms": "groups of BN and activation functions", "blocks": "residual units"}[kind]
        if self.parts == 0:
            return (f"--recompute={kind} changes nothing: the network has no {parts}",)
        return (
            f"--recompute={kind}: {self.parts} {parts} are computed again in the backward pass "
            f"({self.operations} operations)",
        )


def compute_gradients(
    loss: tf.Tensor,
    variables: Sequence[tf.Variable],
    *,
    inputs: tf.Tensor,
    config: ModelConfig,
    gate_gradients: bool = True,
) -> tuple[list[tf.Tensor | None], Recomputed]:
    """Adds the gradients of a loss, of which some activations are computed again.

    Args:
      loss: float32 [].
      variables: variables to differentiate by.
      inputs: images of any type [batch, height, width, 3]: what depends on them are activations.
      config: what is computed again; nothing with XLA.
      gate_gradients: see `tf.gradients`.

    Returns:
      a gradient for each variable, None where the loss does not depend on it; what is computed
      again.
    """
    graph = loss.graph
    forward = graph.get_operations()
    # Joined layers of BN have another gradient, and one worker's memory stands for that of many.
    is_off = config.recompute == "auto" and config.sync_batch_norm
    if config.recompute == "none" or config.xla or is_off:
        gradients = tf.gradients(loss, variables, gate_gradients=gate_gradients)
        return gradients, Recomputed(0, 0, 0)
    seed = tf.ones_like(loss, name=f"{scopes.GRADIENTS}seed")
    gradients = tf.gradients(loss, variables, [seed], gate_gradients=gate_gradients)
    backward = graph.get_operations()[len(forward) :]
    activations = _list_between(forward, inputs, loss)
    find_parts = {
        "auto": find_free_parts,
        "norms": find_cheap_parts,
        "blocks": find_units,
    }[config.recompute]
    of_batch = {inputs.op, *activations}
    readers = _find_readers(backward, seed.op)
    copies = _copy_parts(find_parts(activations), of_batch, readers)
    # Of copied units, what takes no time is copied once more, or it would wait for its gradient.
    readers = _find_readers(backward, seed.op) if config.recompute == "blocks" else {}
    of_batch |= {op for part in copies for op in part}
    within = [_copy_parts(find_free_parts(part), of_batch, readers) for part in copies]
    sizes = [_count_at_a_time(*each) for each in zip(copies, within, strict=True)]
    operations = sum(len(part) for part in itertools.chain(copies, *within))
    return gradients, Recomputed(len(copies), operations, max(sizes, default=0))


def _copy_parts(
    parts: Iterable[list[tf.Operation]],
    of_batch: set[tf.Operation],
    readers: dict[tf.Operation, list["_Reader"]],
) -> list[list[tf.Operation]]:
    """Gives readers copies of parts, and lists the copies of each part that has any."""
    all_parts = [_Part(part, of_batch, readers) for part in parts]
    return [copied for part in all_parts if (copied := part.reroute())]


def _count_at_a_time(part: Sequence[tf.Operation], within: Sequence[Sequence[tf.Operation]]) -> int:
    """Returns the bytes of a part's copies, of which some were copied again, one after another."""

    def count(operations: Iterable[tf.Operation]) -> int:
        tensors = (tensor for op in operations for tensor in op.outputs)
        return count_bytes(tensor for tensor in tensors if not _is_fused(tensor))

    again = [count(operations) for operations in within]
    return count(part) - sum(again) + max(again, default=0)


def count_bytes(tensors: Iterable[tf.Tensor]) -> int:
    """Returns the size of tensors; those of unknown shape, as of BN's reserve, have none."""
    return sum((tensor.shape.num_elements() or 0) * tensor.dtype.size for tensor in tensors)


def _is_fused(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor never is in memory: it is BN's result, before the ReLU alone."""
    readers = [reader.type for reader in tensor.consumers()]
    return tensor.op.type == NORM and readers == ["Relu"]


def _list_between(
    forward: Iterable[tf.Operation], inputs: tf.Tensor, loss: tf.Tensor
) -> list[tf.Operation]:
    """Lists what depends on the inputs and leads to the loss, in the order of building."""
    after = {inputs.op}
    for op in forward:
        if any(tensor.op in after for tensor in op.inputs):
            after.add(op)
    before: set[tf.Operation] = set()
    waiting = [loss.op]
    while waiting:
        op = waiting.pop()
        if op in after and op not in before:
            before.add(op)
            waiting += [tensor.op for tensor in op.inputs]
    return [op for op in forward if op in before and op != inputs.op]


class _Reader(NamedTuple):
    """An operation of the backward pass that reads a tensor of the forward pass.

    Attributes:
      number: its place in the order of building, in which inputs come first.
      op: the operation.
      position: number of the input.
      gradients: its inputs that are gradients.
    """

    number: int
    op: tf.Operation
    position: int
    gradients: tuple[tf.Tensor, ...]


def _find_readers(
    backward: Iterable[tf.Operation], seed: tf.Operation
) -> dict[tf.Operation, list[_Reader]]:
    """Returns who reads which operation's results, in the order of building."""
    of_gradient = {seed}
    readers = collections.defaultdict(list)
    for number, op in enumerate(backward):
        gradients = tuple(tensor for tensor in op.inputs if tensor.op in of_gradient)
        if gradients:
            of_gradient.add(op)
        if op._get_control_flow_context() is None:
            for index, tensor in enumerate(op.inputs):
                readers[tensor.op].append(_Reader(number, op, index, gradients))
    return readers


class _Part:
    """A part of the forward pass that is copied for the backward pass."""

    def __init__(
        self,
        operations: Sequence[tf.Operation],
        of_batch: set[tf.Operation],
        readers: dict[tf.Operation, list[_Reader]],
    ) -> None:
        self._own = {op for op in operations if _can_be_copied(op)}
        self._of_batch = of_batch
        self._read = {op for op in self._own if readers.get(op)}
        found = (reader for op in self._read for reader in readers[op])
        self._readers = sorted(found, key=lambda reader: (reader.number, reader.position))
        self._copies: dict[tf.Operation, tf.Operation] = {}
        self._kept: dict[object, tf.Tensor] = {}
        self._start: tuple[tf.Tensor, ...] = ()

    def reroute(self) -> list[tf.Operation]:
        """Gives the backward pass copies of what it reads, and returns the copies."""
        for reader in self._readers:
            _set_shape(reader.op)
        readers = [reader for reader in self._readers if self._is_rerouted(reader)]
        first = next((reader for reader in readers if reader.gradients), None)
        if first is None:
            return []
        self._start = first.gradients
        # What the first gradient depends on can't wait for it.
        early = {reader.op for reader in readers if reader.number < first.number}
        early &= _list_ancestors(self._start, early)
        for reader in readers:
            if reader.op not in early:
                read = reader.op.inputs[reader.position]
                reader.op._update_input(reader.position, self._copy(read))
        return list(self._copies.values())

    def _is_rerouted(self, reader: _Reader) -> bool:
        """Returns whether an activation is read, not numbers of channels, as BN's statistics."""
        tensor = reader.op.inputs[reader.position]
        if reader.op.type in SHAPE_READERS or (tensor.shape.rank or 0) < 2:
            return False
        # Without another reader of their results, padding would become a part of the convolution
        # behind it, and a convolution one of BN by moving averages behind it: both round otherwise.
        if tensor.op.type in _PADS:
            return False
        others = [op for op in tensor.consumers() if op in self._of_batch]
        return not all(op.type == NORM and not op.get_attr("is_training") for op in others)

    def _copy(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the tensor, computed again; the same one where it is kept."""
        waiting = [tensor.op]
        while waiting:  # Not by recursion: a part may be deep.
            op = waiting[-1]
            missing = [
                source.op
                for source in op.inputs
                if self._is_copied(source) and source.op not in self._copies
            ]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if op not in self._copies:
                self._copies[op] = self._create_copy(op)
        return self._copies[tensor.op].outputs[tensor.value_index]

    def _is_copied(self, tensor: tf.Tensor) -> bool:
        is_kept = tensor.op.type in _PADS and tensor.op in self._read  # See `_is_rerouted`.
        return tensor.op in self._own and (tensor.shape.rank or 0) > 1 and not is_kept

    def _create_copy(self, op: tf.Operation) -> tf.Operation:
        sources = [
            self._copies[source.op].outputs[source.value_index]
            if self._is_copied(source)
            else self._keep(source)
            for source in op.inputs
        ]
        attributes = {name: value for name, value in op.node_def.attr.items() if name != "_class"}
        if op.type == NORM and op.get_attr("is_training") and is_compiled(op):
            # With statistics that it is given it makes the same bits as with those of the batch.
            sources[3:] = op.outputs[3:5]
            attributes["is_training"] = attr_value_pb2.AttrValue(b=False)
        with _alone(op.device):
            return op.graph.create_op(
                op.type,
                sources,
                [result.dtype for result in op.outputs],
                name=op.name.removeprefix(scopes.RECOMPUTED),
                attrs=attributes,
                op_def=op.op_def,
            )

    def _keep(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns a tensor of the forward pass; if of a batch, when the part's turn has come.

        The operation that waits gives what it gets, as `tf.identity`, which TensorFlow would
        remove: then the first of the copies waited itself, and was not fused with the next ones as
        the operations that it copies are, whose bits it would not always have.
        """
        if tensor.op not in self._of_batch:
            return tensor
        if tensor.ref() not in self._kept:
            with _alone(tensor.op.device), tf.control_dependencies(self._start):
                self._kept[tensor.ref()] = tf.raw_ops.PlaceholderWithDefault(
                    input=tensor, shape=tensor.shape, name=f"{tensor.op.name}/kept"
                )
        return self._kept[tensor.ref()]


def _set_shape(op: tf.Operation) -> None:
    """Gives what reads a shape from an operation the shape itself, where it is known.

    TensorFlow does that later, and makes the readers wait for the tensor whose shape it was. What
    others wait for is not fused.
    """
    shape = op.inputs[0].shape if op.type == "Shape" else None
    if shape is None or not shape.is_fully_defined():
        return
    with _alone(op.device):
        known = tf.constant(shape.as_list(), op.outputs[0].dtype, name=f"{op.name}/known")
    for reader in op.outputs[0].consumers():
        for index, tensor in enumerate(reader.inputs):
            if tensor is op.outputs[0]:
                reader._update_input(index, known)


@contextlib.contextmanager
def _alone(device: str) -> Iterator[None]:
    """Adds operations on a device, that wait for nothing but their inputs."""
    with tf.device(device), tf.control_dependencies(None), tf.name_scope(scopes.RECOMPUTED):
        yield


def _can_be_copied(op: tf.Operation) -> bool:
    """Returns whether an operation gives the same when it runs twice, and does nothing else."""
    return not op.op_def.is_stateful and op._get_control_flow_context() is None


def _list_ancestors(tensors: Iterable[tf.Tensor], wanted: set[tf.Operation]) -> set[tf.Operation]:
    """Lists all operations that tensors depend on; none where nothing is wanted."""
    seen: set[tf.Operation] = set()
    waiting = [tensor.op for tensor in tensors] if wanted else []
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting += [tensor.op for tensor in op.inputs]
            waiting += op.control_inputs
    return seen
