"""A network for ONNX Runtime and all else that reads the Open Neural Network Exchange format."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf1

from trainer.config import DataConfig
from trainer.modes.export import signatures
from trainer.modes.export.frozen import Frozen, NotExportableError
from trainer.process import texts

NAME = "model.onnx"
# Of August 2021: what reads ONNX has it.
_OPSET = 15


def write(
    folder: Path, frozen: Frozen, config: DataConfig, names: Sequence[str], precision: str
) -> None:
    """Writes a network as model.onnx, with its classes' names in it and beside it.

    Args:
      folder: the folder to make.
      frozen: the network.
      config: the size of its images.
      names: the names of all classes, each in one line.
      precision: the type of the network's operations, which it has already.

    Raises:
      OSError, tf.errors.OpError: it can't be written.
      NotExportableError: it has an operation that ONNX does not have.
    """
    del precision
    import onnx

    model = _convert(frozen, config.image_size)
    _keep_pads(model.graph)
    _add_names(model.graph, names)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise NotExportableError(f"ONNX can't have it ({texts.first_line(error)})") from error
    folder.mkdir()
    onnx.save(model, str(folder / NAME))
    signatures.write_labels(folder / signatures.LABELS, names)


def _convert(frozen: Frozen, image_size: int) -> Any:
    """Returns the network as ONNX, from the signature's input to its outputs, by their names."""
    with tf1.Graph().as_default() as graph:
        pixels, outputs = signatures.build_of_pixels(frozen, image_size)
        graph_def = graph.as_graph_def()
    renamed = {pixels.name: pixels.op.name} | {each.name: name for name, each in outputs.items()}
    try:
        with _unchanged_log_level(), _quiet("tf2onnx", "tensorflow"):
            import tf2onnx

            model, _ = tf2onnx.convert.from_graph_def(
                graph_def,
                name="slim-horovod",
                input_names=[pixels.name],
                output_names=[each.name for each in outputs.values()],
                opset=_OPSET,
                tensors_to_rename=renamed,
            )
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise NotExportableError(f"tf2onnx refuses it ({texts.first_line(error)})") from error
    return model


@contextlib.contextmanager
def _unchanged_log_level() -> Iterator[None]:
    """Takes back what tf2onnx sets for all of this process, where it is imported."""
    variable = "TF_CPP_MIN_LOG_LEVEL"
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keeps loggers from telling of the converter's own use of TensorFlow.

    What it could not convert it only logs; then the check of what was written fails.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _keep_pads(graph: Any) -> None:
    """Keeps the values that are padded before a max pool.

    ONNX Runtime 1.23 makes such a padding one of the pool itself, which has no values: where a map
    is negative, zeros around it would not count. So each gets an operation behind it that changes
    nothing.
    """
    from onnx import helper, numpy_helper

    padded = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    pools = [n for n in graph.node if n.op_type == "MaxPool" and n.input[0] in padded]
    if not pools:
        return
    least = "least_number"
    graph.initializer.append(numpy_helper.from_array(np.array(-np.inf, np.float32), least))
    for pool in pools:
        before = pool.input[0]
        alike, kept = f"{before}/least", f"{before}/kept"
        place = list(graph.node).index(pool)
        graph.node.insert(place, helper.make_node("Max", [before, alike], [kept], name=kept))
        # The map's type is not known here: exports have several.
        graph.node.insert(place, helper.make_node("CastLike", [least, before], [alike], name=alike))
        pool.input[0] = kept


def _add_names(graph: Any, names: Sequence[str]) -> None:
    """Adds the outputs with the names of classes, which tf2onnx would not convert."""
    from onnx import TensorProto, helper

    table = "table_of_names"
    encoded = [name.encode() for name in names]
    graph.initializer.append(helper.make_tensor(table, TensorProto.STRING, [len(names)], encoded))
    shapes = {output.name: output.type.tensor_type.shape for output in graph.output}
    for classes, output in signatures.NAMES_OF.items():
        graph.node.append(helper.make_node("Gather", [table, classes], [output], name=output))
        value = helper.make_tensor_value_info(output, TensorProto.STRING, None)
        value.type.tensor_type.shape.CopyFrom(shapes[classes])
        graph.output.append(value)
