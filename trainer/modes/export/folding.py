"""Batch normalization (BN) by moving averages as parts of the convolutions around it.

As used, BN is y = scale * x + shift of each channel. Behind a convolution it becomes a part of it:
the kernel is multiplied by the scale, and the shift is its bias. Before a ReLU and convolutions
that add no zeros around the map, as at the start of a unit of ResNet-v2,

    relu(scale * x + shift) = scale * max(x, -shift / scale) + shift    where scale > 0,

and with min in place of max where scale < 0: what is left of BN and ReLU is one bound of each
channel, and those convolutions take scale and shift into their kernels and biases. Both are the
same up to rounding: kernels and biases are computed in float64 from the variables' own float32 and
rounded once. In low precision the second is not done, since sums that cancel out would be rounded
before they do.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1

_NORMS = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
KERNEL = 1  # Of a convolution's inputs.
# Of a scale that is smaller than its shift by this, nothing is left in a sum of both.
_NOTHING = 1e-30

Array = npt.NDArray[Any]


class Affine(NamedTuple):
    """BN by moving averages: scale * x + shift; float64 [channels]."""

    scale: Array
    shift: Array


class Clip(NamedTuple):
    """The rest of a BN and the ReLU behind it: min(max(x, lower), upper); float32 [channels].

    Attributes:
      norm: the name of the BN, which goes.
      lower, upper: the bounds. None: there is none on that side.
    """

    norm: str
    lower: Array | None
    upper: Array | None


class Folds(NamedTuple):
    """The changes to a network, by the names of its operations.

    Attributes:
      kernels: the kernels of convolutions.
      biases: the biases of the additions behind them; a BN of that name becomes such an addition.
      clips: the clips of ReLUs, of which each becomes one or two bounds.
      num_norms: the number of BNs that go.
    """

    kernels: Mapping[str, Array]
    biases: Mapping[str, Array]
    clips: Mapping[str, Clip]
    num_norms: int


class _Convolution(NamedTuple):
    """A convolution whose kernel and bias may change.

    Attributes:
      op: the convolution.
      holder: the operation behind it, with its bias: a BN or a BiasAdd.
    """

    op: tf.Operation
    holder: tf.Operation


class _Graph:
    """The operations of a network that depend on its images, with a look at what uses them."""

    def __init__(self, operations: Sequence[tf.Operation], last: str) -> None:
        self.operations = operations
        self._names = {op.name for op in operations}
        self._last = last

    def user(self, op: tf.Operation) -> tf.Operation | None:
        """Returns the only operation that uses an operation's first result."""
        users = self.users(op)
        return users[0] if len(users) == 1 else None

    def users(self, op: tf.Operation) -> list[tf.Operation]:
        """Returns all operations that use the first result; none where it is the network's own."""
        return [] if op.name == self._last else self._known(op.outputs[0].consumers())

    def _known(self, users: Iterable[tf.Operation]) -> list[tf.Operation]:
        return [op for op in users if op.name in self._names]

    def is_constant(self, tensors: Iterable[tf.Tensor]) -> bool:
        """Returns whether tensors are the same whatever the images are."""
        return all(tensor.op.name not in self._names for tensor in tensors)

    def is_norm(self, op: tf.Operation) -> bool:
        """Returns whether an operation is a BN whose scale and shift are constants."""
        return (
            op.type in _NORMS
            and not op.get_attr("is_training")
            and op.get_attr("data_format") == b"NHWC"
            and self.is_constant(op.inputs[1:])
            and not any(self._known(output.consumers()) for output in op.outputs[1:])
        )

    def find_convolution(self, op: tf.Operation) -> _Convolution | None:
        """Returns a convolution with what has its bias; None where it has no such, or is none."""
        if (
            op.type != "Conv2D"
            or op.get_attr("data_format") != b"NHWC"
            or not self.is_constant([op.inputs[KERNEL]])
        ):
            return None
        user = self.user(op)
        if user is None or user.inputs[0].op.name != op.name:
            return None
        is_bias = user.type == "BiasAdd" and self.is_constant(user.inputs[1:])
        return _Convolution(op, user) if is_bias or self.is_norm(user) else None


def find(session: tf1.Session, operations: Sequence[tf.Operation], last: str) -> Folds:
    """Finds the BNs that can become parts of convolutions, and computes what these are then.

    Args:
      session: the session that holds the variables.
      operations: those of the network that depend on its images.
      last: the name of the one that makes the logits.
    """
    graph = _Graph(operations, last)
    convolutions = {
        op.name: found for op in operations if (found := graph.find_convolution(op)) is not None
    }
    norms = {op.name: op for op in operations if graph.is_norm(op)}
    # In one run: TensorFlow goes through the whole graph for every new set of fetches.
    values = session.run(
        {
            "norms": {name: list(op.inputs[1:5]) for name, op in norms.items()},
            "kernels": {name: _find_source(each.op) for name, each in convolutions.items()},
            "biases": {
                name: _find_source(each.holder)
                for name, each in convolutions.items()
                if each.holder.name not in norms
            },
        }
    )
    affines = {
        name: _to_affine(*values["norms"][name], epsilon=op.get_attr("epsilon"))
        for name, op in norms.items()
    }

    def combine(name: str, before: Affine | None) -> tuple[Array, Array] | None:
        convolution = convolutions[name]
        kernel, bias = _combine(
            values["kernels"][name],
            values["biases"].get(name, 0.0),
            before,
            affines.get(convolution.holder.name),
        )
        return _round(kernel, bias, convolution.op.inputs[KERNEL].dtype.as_numpy_dtype)

    folded: dict[str, tuple[Array, Array]] = {}
    clips = {}
    behind = {each.holder.name for each in convolutions.values()}
    for name, norm in norms.items():
        relu = None if name in behind else _find_relu(graph, norm)
        if relu is None or not all(op.name in convolutions for op in graph.users(relu)):
            continue
        clip, before = _to_clip(name, affines[name])
        both = {op.name: combine(op.name, before) for op in graph.users(relu)}
        if all(each is not None for each in both.values()):
            folded |= {key: each for key, each in both.items() if each is not None}
            clips[relu.name] = clip
    for name, convolution in convolutions.items():
        if name not in folded and convolution.holder.name in norms:
            each = combine(name, None)
            if each is not None:
                folded[name] = each
    holders = {name: convolutions[name].holder.name for name in folded}
    return Folds(
        kernels={name: kernel for name, (kernel, _) in folded.items()},
        biases={holders[name]: bias for name, (_, bias) in folded.items()},
        clips=clips,
        num_norms=len(clips) + sum(holder in norms for holder in holders.values()),
    )


def _find_source(op: tf.Operation) -> tf.Tensor:
    """Returns a convolution's kernel, or a bias, before it was rounded to the layer's type."""
    source = op.inputs[KERNEL]
    while source.op.type == "Identity" or (
        source.op.type == "Cast" and source.op.inputs[0].dtype == tf.float32
    ):
        source = source.op.inputs[0]
    return source


def _find_relu(graph: _Graph, norm: tf.Operation) -> tf.Operation | None:
    """Returns the ReLU behind a BN, where both can become parts of the convolutions behind them."""
    relu = graph.user(norm)
    if relu is None or relu.type != "Relu" or norm.inputs[0].dtype != tf.float32:
        return None
    users = graph.users(relu)
    channels = norm.inputs[1].shape.as_list()
    are_plain = (_adds_no_zeros(op) and op.inputs[KERNEL].shape[2:3] == channels for op in users)
    return relu if users and all(are_plain) else None


def _adds_no_zeros(op: tf.Operation) -> bool:
    """Returns whether an operation is a convolution of nothing but what its map has."""
    if op.type != "Conv2D":
        return False
    padding = op.get_attr("padding")
    return padding == b"VALID" or (
        padding == b"SAME" and op.inputs[KERNEL].shape[:2].as_list() == [1, 1]
    )


def _to_affine(
    scale: Array, offset: Array, mean: Array, variance: Array, *, epsilon: float
) -> Affine:
    """Returns a BN, scale * (x - mean) / sqrt(variance + epsilon) + offset, as it is used."""
    with np.errstate(all="ignore"):  # What is not finite is asked for in `_round`.
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return Affine(factor, offset - mean * factor)


def _to_clip(name: str, affine: Affine) -> tuple[Clip, Affine]:
    """Returns what is left of a BN, by its name, and a ReLU, and what goes into kernels behind."""
    scale, shift = affine
    # Of x nothing would be left: such a channel is the same everywhere.
    is_flat = ~(np.abs(scale) > _NOTHING * np.abs(shift))
    bound = np.divide(-shift, scale, out=np.zeros_like(scale), where=~is_flat)
    lower = np.where(~is_flat & (scale > 0), bound, -np.inf).astype(np.float32)
    upper = np.where(~is_flat & (scale < 0), bound, np.inf).astype(np.float32)
    has_upper = bool((upper < np.inf).any())
    has_lower = bool((lower > -np.inf).any()) or not has_upper
    clip = Clip(name, lower if has_lower else None, upper if has_upper else None)
    flat = Affine(np.zeros_like(scale), np.maximum(shift, 0))
    return clip, Affine(*(np.where(is_flat, *pair) for pair in zip(flat, affine, strict=True)))


def _combine(
    kernel: Array, bias: Array | float, before: Affine | None, behind: Affine | None
) -> tuple[Array, Array]:
    """Returns kernel and bias, float64, of a convolution with what is before and behind it.

    Args:
      kernel: [height, width, channels_in, channels_out].
      bias: [channels_out], or 0.
      before: what happens to the channels of its map. None: nothing.
      behind: what happens to those of its result. None: nothing.
    """
    kernel = kernel.astype(np.float64)
    bias = np.zeros(kernel.shape[3]) + bias
    if before is not None:
        bias += before.shift @ kernel.sum(axis=(0, 1))
        kernel *= before.scale[:, None]
    with np.errstate(all="ignore"):  # See `_to_affine`.
        if behind is not None:
            kernel, bias = kernel * behind.scale, bias * behind.scale + behind.shift
    return kernel, bias


def _round(kernel: Array, bias: Array, dtype: Any) -> tuple[Array, Array] | None:
    """Returns both in a convolution's type; None where they are not finite in it."""
    with np.errstate(over="ignore"):
        kernel, bias = kernel.astype(dtype), bias.astype(dtype)
    is_finite = all(np.isfinite(each.astype(np.float64)).all() for each in (kernel, bias))
    return (kernel, bias) if is_finite else None
