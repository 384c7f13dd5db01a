"""Writes variables' values into a checkpoint's files, without the session that trains."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.process import texts

# So much of a checkpoint is read back at a time, or one variable where it is larger.
_READ_BYTES = 1 << 24


class _Spec(NamedTuple):
    """What there is to know of a variable."""

    name: str
    dtype: tf.DType
    shape: tf.TensorShape


class _Operations(NamedTuple):
    """The operations of a session."""

    write: Callable[..., object]
    read: Callable[[str], object]


class BundleWriter:
    """Writes the files that `tf.train.Saver` writes, byte for byte, from arrays.

    All of it is done by the thread that calls: none of the threads that run steps is asked, and a
    thread of low priority works at its own. Nearly all of it is done without Python's lock: a
    thread that has it while others have the cores keeps the loop from going on.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        """Takes the names, types and shapes of variables; nothing is added to their graph."""
        self._specs = [_Spec(v.op.name, v.dtype.base_dtype, v.shape) for v in variables]

    def write(self, prefix: str, values: Sequence[npt.NDArray[Any]]) -> None:
        """Writes a checkpoint.

        Args:
          prefix: prefix of its files.
          values: the values of all variables, in their order.

        Raises:
          tf.errors.OpError: it could not be written.
        """
        self._operations.write(prefix, *values)

    def damage(self, prefix: str) -> str | None:
        """Reads a checkpoint of the variables back, checksums included: `search.damage`."""
        try:
            self._operations.read(prefix)
        except tf.errors.OpError as error:
            return texts.first_line(error)
        return None

    @functools.cached_property
    def _operations(self) -> _Operations:
        specs = sorted(
            self._specs, key=lambda spec: spec.name
        )  # By name, in which order Saver writes them, too.
        with tf.Graph().as_default() as graph, tf.device("/cpu:0"):
            prefix = tf1.placeholder(tf.string, [])
            values = {spec.name: tf1.placeholder(spec.dtype, spec.shape) for spec in self._specs}
            save = tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=[spec.name for spec in specs],
                shape_and_slices=[""] * len(specs),
                tensors=[values[spec.name] for spec in specs],
            )
            read = tf.no_op()
            for part in _in_parts(specs):
                with tf.control_dependencies([read]):  # One part after the other.
                    tensors = tf.raw_ops.RestoreV2(
                        prefix=prefix,
                        tensor_names=[spec.name for spec in part],
                        shape_and_slices=[""] * len(part),
                        dtypes=[spec.dtype for spec in part],
                    )
                read = tensors[0].op
        # Less than 0: operations run in the thread that calls.
        config = tf1.ConfigProto(inter_op_parallelism_threads=-1, device_count={"GPU": 0})
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        session = tf1.Session(graph=graph, config=config)
        return _Operations(
            session.make_callable(save, [prefix, *values.values()]),
            session.make_callable(read, [prefix]),
        )


def _in_parts(specs: Sequence[_Spec]) -> Iterator[list[_Spec]]:
    """Yields the variables in parts of a limited size."""
    part: list[_Spec] = []
    part_bytes = 0
    for spec in specs:
        size = spec.shape.num_elements() * spec.dtype.size
        if part and part_bytes + size > _READ_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(spec)
        part_bytes += size
    yield part
