"""Writes variables' values into a checkpoint's files: with the session that trains, or without."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import background
from trainer.machine import session as machine_session
from trainer.process import texts

# So much of a checkpoint is read back at a time, or one variable where it is larger.
_READ_BYTES = 1 << 24


class _Spec(NamedTuple):
    """The name, type and shape of a variable."""

    name: str
    dtype: tf.DType
    shape: tf.TensorShape


class _Operations(NamedTuple):
    """The operations of a session."""

    write: Callable[..., object]
    read_parts: Sequence[Callable[[str], object]]


class GraphWriter:
    """Writes the values that variables have in a session, of which it makes no copy.

    `tf.train.Saver` writes the same bytes. It would add operations that restore, too, two for each
    variable: a tenth of a training graph.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        """Adds one operation to the default graph, of which the variables are."""
        graph = tf1.get_default_graph()
        with tf.name_scope("save/"), tf.device("/cpu:0"):
            self._prefix = tf1.placeholder(tf.string, [], name="prefix")
            values = {v.op.name: graph.as_graph_element(v) for v in variables}
            self._save = _build_save(self._prefix, values)

    def write(self, session: tf1.Session, prefix: str) -> None:
        """Writes a checkpoint.

        Raises:
          tf.errors.OpError: it could not be written.
        """
        session.run(self._save, {self._prefix: prefix})


class BundleWriter:
    """Writes the files that `tf.train.Saver` writes, byte for byte, from arrays.

    All of it is done by the thread that calls: none of the threads that run steps is asked, and a
    thread of low priority works at its own. Nearly all of it is done without Python's lock: a
    thread that has it while others have the cores keeps the loop from going on.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        """Takes the names, types and shapes of variables; nothing is added to their graph."""
        self._specs = [_Spec(v.op.name, v.dtype.base_dtype, v.shape) for v in variables]

    def prepare(self) -> None:
        """Builds what writes and reads, which the first call of either does otherwise."""
        self._operations  # noqa: B018 (cached)

    def write(self, prefix: str, values: Sequence[npt.NDArray[Any]]) -> None:
        """Writes a checkpoint.

        Args:
          prefix: prefix of its files.
          values: the values of all variables, in their order.

        Raises:
          tf.errors.OpError: it could not be written.
        """
        self._operations.write(prefix, *values)
        background.rest()

    def damage(self, prefix: str) -> str | None:
        """Reads a checkpoint of the variables back, checksums included: `search.damage`."""
        try:
            for read in self._operations.read_parts:
                read(prefix)
                background.rest()
        except tf.errors.OpError as error:
            return texts.first_line(error)
        return None

    @functools.cached_property
    def _operations(self) -> _Operations:
        with tf.Graph().as_default() as graph, tf.device("/cpu:0"):
            prefix = tf1.placeholder(tf.string, [])
            values = {spec.name: tf1.placeholder(spec.dtype, spec.shape) for spec in self._specs}
            save = _build_save(prefix, values)
            parts = [
                tf.raw_ops.RestoreV2(
                    prefix=prefix,
                    tensor_names=[spec.name for spec in part],
                    shape_and_slices=[""] * len(part),
                    dtypes=[spec.dtype for spec in part],
                )
                for part in _in_parts(sorted(self._specs, key=lambda spec: spec.name))
            ]
        # Less than 0: operations run in the thread that calls.
        config = tf1.ConfigProto(inter_op_parallelism_threads=-1, device_count={"GPU": 0})
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        session = tf1.Session(graph=graph, config=config)
        return _Operations(
            machine_session.prepare(session, [save], [prefix, *values.values()]),
            [machine_session.prepare(session, [tensors[0].op], [prefix]) for tensors in parts],
        )


def _build_save(prefix: tf.Tensor, values: Mapping[str, tf.Tensor]) -> tf.Operation:
    """Adds the operation that writes values by name, in which order Saver writes them, too."""
    names = sorted(values)
    return tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[values[name] for name in names],
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
