"""The network of a checkpoint as a graph without variables, and with fewer operations.

What does not depend on the images becomes a constant, of the type in which it is used; batch
normalization (BN) becomes a part of the convolutions around it, where it can (`folding`). A network
without such BN only loses its variables.
"""

from collections.abc import Sequence, Set
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.modes.export import folding
from trainer.process import texts

# What gives the values of variables, which are the same in all runs of an exported network.
_READERS = frozenset({"VarHandleOp", "ReadVariableOp", "VariableV2", "Variable"})
_FED = frozenset({"Placeholder", "PlaceholderWithDefault"})
# Of loops and branches in TensorFlow's older form, which belong together.
_CONTROL_FLOW = frozenset({"Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch"})
# Protocol buffers have 2 GiB; names and operations need little of it.
_MOST_BYTES = 2**31 - 2**25
# Attributes for those who build a graph: other gradients, and operations that share a device.
_OF_BUILDING = ("_gradient_op_type", "_class")


class Frozen(NamedTuple):
    """A network without variables.

    Attributes:
      graph_def: its operations, but for the placeholder of the images, which they name.
      images: the name of that tensor.
      logits: the name of the tensor of the logits.
      num_folded: the number of BNs that have become parts of convolutions.
      loss: value of --loss that it was trained with, which tells what its probabilities are.
    """

    graph_def: tf1.GraphDef
    images: str
    logits: str
    num_folded: int
    loss: str = "softmax"


class NotExportableError(ValueError):
    """A network that is nothing without its variables. The message says why."""


class _Constants(NamedTuple):
    """The constants of a frozen network.

    Attributes:
      values: the values by name.
      of_inputs: the name of the one that an operation, by its name, has at a place of its inputs.
    """

    values: dict[str, folding.Array]
    of_inputs: dict[tuple[str, int], str]


def freeze(session: tf1.Session, images: tf.Tensor, logits: tf.Tensor) -> Frozen:
    """Returns the network from its images to its logits.

    Args:
      session: the session that holds the variables.
      images: the placeholder of the images.
      logits: the network's result.

    Raises:
      NotExportableError: the network is nothing without its variables, or does not look at images.
    """
    needed = _find_needed(logits.op)
    dependent = _find_dependent(needed, images.op)
    if logits.op.name not in dependent:
        raise NotExportableError("its logits do not depend on its images")
    operations = [op for op in needed if op.name in dependent and op.name != images.op.name]
    if any(_is_variable(tensor) for op in operations for tensor in op.inputs):
        return _freeze_within(session, images, logits)
    folds = folding.find(session, operations, logits.op.name)
    gone = {clip.norm for clip in folds.clips.values()}
    operations = [op for op in operations if op.name not in gone]
    constants = _Constants({}, {})
    _add_kernels(folds, constants)
    _add_others(session, operations, dependent, folds, constants)
    size = sum(value.nbytes for value in (*constants.values.values(), *folds.biases.values()))
    if size > _MOST_BYTES:
        raise NotExportableError(
            f"its weights have {size / 2**30:.1f} GiB, where a graph has room for less than 2. "
            "--export_precision=bfloat16 halves them"
        )
    original = images.graph.as_graph_def()
    graph_def = tf1.GraphDef(versions=original.versions, library=original.library)
    graph_def.node.extend(_constant(name, value) for name, value in constants.values.items())
    kept = {op.name for op in operations}
    for op in operations:
        graph_def.node.extend(_rebuild(op, kept, folds, constants))
    return Frozen(graph_def, images.name, logits.name, folds.num_norms)


def _is_variable(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor is a variable itself, or something else that is no value."""
    return tensor.dtype == tf.resource or tensor.dtype.base_dtype != tensor.dtype


def _freeze_within(session: tf1.Session, images: tf.Tensor, logits: tf.Tensor) -> Frozen:
    """Returns a network of which a part takes a variable and not its value, as branches do.

    TensorFlow's own function looks into such parts. It is deprecated, without another one that
    takes a session.
    """
    original = images.graph.as_graph_def()
    try:
        plain = tf1.graph_util.convert_variables_to_constants(session, original, [logits.op.name])
    except (ValueError, TypeError, LookupError) as error:  # Of what it does not know.
        raise NotExportableError(texts.first_line(error)) from error
    with tf.Graph().as_default(), tf1.Session() as other:
        images, logits = tf.import_graph_def(
            plain, return_elements=[images.name, logits.name], name=""
        )
        for op in images.graph.get_operations():
            for tensor in op.inputs:
                if _is_variable(tensor):
                    raise NotExportableError(f"{op.name} needs {tensor.op.name}, which is no value")
        return freeze(other, images, logits)


def _find_needed(last: tf.Operation) -> list[tf.Operation]:
    """Returns what an operation needs, and itself, in the order in which they were built."""
    names: set[str] = set()
    waiting = [last]
    while waiting:
        op = waiting.pop()
        if op.name not in names:
            names.add(op.name)
            waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return [op for op in last.graph.get_operations() if op.name in names]


def _find_dependent(needed: Sequence[tf.Operation], images: tf.Operation) -> set[str]:
    """Returns the names of the operations whose results may change from run to run."""
    names: set[str] = set()
    for op in needed:
        changes = (
            op.name == images.name
            or op.type in _FED | _CONTROL_FLOW
            or (op.op_def.is_stateful and op.type not in _READERS)
        )
        before = (*(tensor.op for tensor in op.inputs), *op.control_inputs)
        if changes or any(other.name in names for other in before):
            names.add(op.name)
    return names


def _add_kernels(folds: folding.Folds, constants: _Constants) -> None:
    """Adds the kernels of convolutions that have become others."""
    for name, kernel in folds.kernels.items():
        constants.values[f"{name}/folded_kernel"] = kernel
        constants.of_inputs[name, folding.KERNEL] = f"{name}/folded_kernel"


def _add_others(
    session: tf1.Session,
    operations: Sequence[tf.Operation],
    dependent: Set[str],
    folds: folding.Folds,
    constants: _Constants,
) -> None:
    """Adds the constants that stay what they are in the network, in the types that they have."""
    tensors = {}
    for op in operations:
        for place, tensor in enumerate(() if op.name in folds.biases else op.inputs):
            if tensor.op.name in dependent or (op.name, place) in constants.of_inputs:
                continue
            output = tensor.value_index
            name = f"{tensor.op.name}/output_{output}" if output else tensor.op.name
            tensors[name] = tensor
            constants.of_inputs[op.name, place] = name
    constants.values.update(session.run(tensors))


def _rebuild(
    op: tf.Operation, kept: Set[str], folds: folding.Folds, constants: _Constants
) -> list[tf1.NodeDef]:
    """Returns what an operation becomes: what it was, but for its constants, or what is folded."""
    if op.name in folds.biases:
        bias = _constant(f"{op.name}/bias", folds.biases[op.name])
        return [bias, _node("BiasAdd", op.name, op.inputs[0], op.inputs[0].name, bias.name)]
    if op.name in folds.clips:
        return _clip(op, folds.clips[op.name])
    node = tf1.NodeDef()
    node.CopyFrom(op.node_def)
    node.device = ""
    for name in _OF_BUILDING:
        node.attr.pop(name, None)
    del node.input[:]
    node.input.extend(
        constants.of_inputs.get((op.name, place), tensor.name)
        for place, tensor in enumerate(op.inputs)
    )
    node.input.extend(f"^{other.name}" for other in op.control_inputs if other.name in kept)
    return [node]


def _clip(relu: tf.Operation, clip: folding.Clip) -> list[tf1.NodeDef]:
    """Returns the bounds that a BN and the ReLU behind it become, the last with the ReLU's name."""
    norm = relu.inputs[0].op
    bounds = [("Maximum", clip.lower), ("Minimum", clip.upper)]
    wanted = [(kind, bound) for kind, bound in bounds if bound is not None]
    nodes, source = [], norm.inputs[0].name
    for number, (kind, bound) in enumerate(wanted, start=1):
        name = relu.name if number == len(wanted) else f"{relu.name}/{kind.lower()}"
        constant = _constant(f"{relu.name}/{kind.lower()}_bound", bound)
        nodes += [constant, _node(kind, name, norm.inputs[0], source, constant.name)]
        source = name
    return nodes


def _node(kind: str, name: str, like: tf.Tensor, *inputs: str) -> tf1.NodeDef:
    """Returns an operation on tensors of the same type as another one."""
    node = tf1.NodeDef(name=name, op=kind, input=inputs)
    node.attr["T"].type = like.dtype.as_datatype_enum
    return node


def _constant(name: str, value: folding.Array) -> tf1.NodeDef:
    node = tf1.NodeDef(name=name, op="Const")
    content = tf.make_tensor_proto(value)
    node.attr["dtype"].type = content.dtype
    node.attr["value"].tensor.CopyFrom(content)
    return node
