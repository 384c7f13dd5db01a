"""The tf.data graph from a worker's sequence of examples to its batches.

The sequence is cut into chunks. Each is read by one call into Python and decoded by C++
operations; several chunks are processed at once, and come out in order. Where an image of a chunk
cannot be decoded, the whole chunk is made again, and this time Python tries to decode every image
first (`decode`) and replaces the bad ones.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from trainer import exit_status
from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs.images.pixels import ROW_TYPES, Rows, build_pixels, row_shapes
from trainer.inputs.rows import EvaluationRows, GuardedRows, TrainRows
from trainer.machine import cores, session

# Large enough to hide the cost of a call into Python, small enough to keep all threads busy.
_CHUNK_SIZES = range(32, 15, -1)
_BATCHES_AHEAD = 2
_HOST = "/cpu:0"
_Function: TypeAlias = tf.types.experimental.ConcreteFunction


class Batch(NamedTuple):
    """One worker's examples of one step.

    Attributes:
      images: the pixels: uint8 [batch_size, image_size, image_size, 3].
      labels: the classes: int32 [batch_size].
      weights: the weight of each row: 1 for an example, 0 for a row that does not count; float32
        [batch_size].
      shares: the share of an example that stays its own when it is mixed with another
        (`trainer.graph.images.network_input`): float32 [batch_size] in [0, 1]; 1 without --mixup
        and --cutmix.
      boxes: top, left, height and width of the part that --cutmix replaces: int32 [batch_size, 4];
        0 where there is none.
    """

    images: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    shares: tf.Tensor
    boxes: tf.Tensor


class Stream:
    """The batches of a graph, and the examples that could not be read.

    Attributes:
      batch: the tensors of a batch; each run of them gives the next one.
      initializer: the op that starts the stream, to be run with `start_step` fed.
      start_step: the placeholder of the first step whose batch is wanted: int64, scalar.
      steps: the number of batches from step 0 on, the same on every worker. None: no end.
    """

    def __init__(
        self,
        *,
        batch: Batch,
        initializer: tf.Operation,
        start_step: tf.Tensor,
        steps: int | None,
        rows: GuardedRows | None = None,
    ) -> None:
        self.batch = batch
        self.initializer = initializer
        self.start_step = start_step
        self.steps = steps
        self._rows = rows

    def bad_examples(self) -> int:
        """Returns how many different examples this worker has found to be bad so far."""
        return self._rows.maker.images.bad_examples if self._rows else 0

    def name_of(self, step: int, row: int) -> str:
        """Returns the name of the example in a row of the batch of a step of an evaluation.

        Empty for other streams: in training another example takes the place of a bad one.
        """
        maker = self._rows.maker if self._rows else None
        return maker.name_of(step, row) if isinstance(maker, EvaluationRows) else ""

    def explain(self, error: tf.errors.OpError) -> UserError | None:
        """Returns why the stream ended, or None where `error` has another cause.

        Args:
          error: the error that `Session.run` raised. It is an OutOfRangeError where a stream
            cannot go on, since that stream then ends.
        """
        if self._rows is None or not isinstance(error, tf.errors.OutOfRangeError):
            return None
        return self._rows.error

    @contextlib.contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Raises, in place of a session's error, the UserError of this stream that caused it."""
        try:
            yield
        except tf.errors.OpError as error:
            reason = self.explain(error)
            if reason is None:
                raise
            raise UserError(str(reason), known_to_all=False, status=exit_status.FAILED) from error


def count_threads(worker: Worker) -> int:
    """Returns how many threads may process chunks: this worker's share of the cores, at least 1."""
    return cores.worker_cores(worker.local_size)


def _chunk_size(batch_size: int) -> int:
    """Returns the number of rows of a chunk: if possible, a divisor of the batch size."""
    if batch_size < _CHUNK_SIZES[-1]:
        return batch_size
    return next((size for size in _CHUNK_SIZES if batch_size % size == 0), _CHUNK_SIZES[0])


def _on_host(function: Callable[..., Any], *arguments: tf.TypeSpec) -> _Function:
    """Traces a function of the pipeline with attributes that have it run on one device as it is.

    Without the first it would be prepared for several devices anew at each start of a stream, for
    0.1 s in each thread. Without the second, which functions of `Dataset.map` have, too, the graph
    optimizers of the session would go through it (TensorFlow 2.21).

    Args:
      function: the function of the arguments' tensors, all of whose operations are the CPU's.
      arguments: what describes the arguments.
    """
    attributes = {"experimental_ints_on_device": True, "_tf_data_function": True}
    traced = tf.function(function, autograph=False, experimental_attributes=attributes)
    return traced.get_concrete_function(*arguments)


def _map(
    elements: tf.data.Dataset, function: _Function, *, threads: int | None = None
) -> tf.data.Dataset:
    """Makes `Dataset.map` of a function from `_on_host`.

    `Dataset.map` itself would wrap the function in another one without its attributes.

    Args:
      elements: the dataset.
      function: the function of an element.
      threads: how many elements are mapped at once; they come in order. None: one, by the caller.
    """
    structure = tf.nest.map_structure(
        lambda output: tf.TensorSpec(output.shape, output.dtype), function.structured_outputs
    )
    arguments = {
        "f": function,
        "other_arguments": function.captured_inputs,
        "preserve_cardinality": True,
        **_in_and_out(elements, structure),
    }
    if threads is None:
        mapped = tf.raw_ops.MapDataset(**arguments)
    else:
        mapped = tf.raw_ops.ParallelMapDatasetV2(
            **arguments, num_parallel_calls=tf.constant(threads, tf.int64), deterministic="true"
        )
    return tf.data.experimental.from_variant(mapped, structure)


def _take_while(elements: tf.data.Dataset, predicate: _Function) -> tf.data.Dataset:
    """Makes `Dataset.take_while` of a function from `_on_host`."""
    structure = elements.element_spec
    kept = tf.raw_ops.TakeWhileDataset(
        predicate=predicate,
        other_arguments=predicate.captured_inputs,
        **_in_and_out(elements, structure),
    )
    return tf.data.experimental.from_variant(kept, structure)


def _unbatch(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Makes `Dataset.unbatch`, which would map a function of its own first, of dense batches."""
    structure = tf.nest.map_structure(
        lambda spec: tf.TensorSpec(spec.shape[1:], spec.dtype), batches.element_spec
    )
    elements = tf.raw_ops.UnbatchDataset(**_in_and_out(batches, structure))
    return tf.data.experimental.from_variant(elements, structure)


def _in_and_out(elements: tf.data.Dataset, structure: Any) -> dict[str, Any]:
    """Returns what an operation is given that makes a dataset of this structure of another one."""
    outputs = tf.nest.flatten(structure)
    return {
        "input_dataset": tf.data.experimental.to_variant(elements),
        "output_types": [spec.dtype for spec in outputs],
        "output_shapes": [spec.shape for spec in outputs],
    }


def _regroup(chunks: tf.data.Dataset, count: int, batch_size: int) -> tf.data.Dataset:
    """Makes batches of chunks of `count` rows; row by row only where a batch ends in a chunk."""
    if batch_size % count:
        return _unbatch(chunks).batch(batch_size, drop_remainder=True)
    if batch_size == count:
        return chunks

    def join(batch: Batch) -> Batch:
        return Batch(*(tf.reshape(part, [batch_size, *part.shape[2:]]) for part in batch))

    chunks = chunks.batch(batch_size // count, drop_remainder=True)
    return _map(chunks, _on_host(join, chunks.element_spec))


def _read_op(rows: GuardedRows, start: tf.Tensor, count: int, *, decode: bool) -> Rows:
    """Adds the call into Python that makes a chunk of rows."""
    values = tf.numpy_function(
        lambda start: rows.create(start, count, decode=decode), [start], list(ROW_TYPES)
    )
    return Rows(
        *(
            tf.ensure_shape(value, (count, *shape))
            for value, shape in zip(values, row_shapes(rows.maker.config), strict=True)
        )
    )


def _build_chunks(
    starts: tf.data.Dataset, rows: GuardedRows, count: int, config: DataConfig, threads: int
) -> tf.data.Dataset:
    """Makes batches of `count` examples; where decoding fails, again and with checks."""
    training = isinstance(rows.maker, TrainRows)

    def create_batch(row: Rows) -> Batch:
        decode = rows.maker.images.decode_large
        images = build_pixels(row, config, training=training, decode=decode)
        return Batch(images, row.labels, row.weights, row.shares, row.boxes)

    def create_chunk(start: tf.Tensor) -> Batch:
        quick = tf.data.Dataset.from_tensor_slices(_read_op(rows, start, count, decode=False))
        create = _on_host(create_batch, quick.element_spec)
        quick = _map(quick, create).batch(count, drop_remainder=True).ignore_errors()
        careful = tf.data.Dataset.from_tensors(start)
        read = _on_host(
            lambda start: _read_op(rows, start, count, decode=True), careful.element_spec
        )
        careful = _map(_unbatch(_map(careful, read)), create).batch(count, drop_remainder=True)
        return quick.concatenate(careful).take(1).get_single_element()

    def is_there(batch: Batch) -> tf.Tensor:
        return batch.weights[0] >= 0

    chunks = _map(starts, _on_host(create_chunk, starts.element_spec), threads=threads)
    return _take_while(chunks, _on_host(is_there, chunks.element_spec))


def build_stream(
    maker: TrainRows | EvaluationRows, config: DataConfig, worker: Worker, *, steps: int | None
) -> Stream:
    """Adds the pipeline to the current graph.

    Args:
      maker: the maker of the rows.
      config: the size, augmentation and batch size.
      worker: the worker that reads.
      steps: the number of batches. None: no end.
    """
    rows = GuardedRows(maker)
    threads = count_threads(worker)
    batch_size = config.batch_size
    count = _chunk_size(batch_size)
    # One thread per image: TensorFlow's own threads within an image would compete with each other.
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    # tf.data's own rewriting of the pipeline takes 0.1 s at each start, and makes nothing faster.
    options.experimental_optimization.apply_default_optimizations = False
    with tf.name_scope("inputs") as scope, tf.device(_HOST):
        start_step = tf.compat.v1.placeholder(tf.int64, [], name="start_step")
        end = tf.int64.max if steps is None else steps * batch_size
        starts = tf.data.Dataset.range(start_step * batch_size, end, count)
        chunks = _build_chunks(starts, rows, count, config, threads)
        batches = _regroup(chunks, count, batch_size)
        if steps is not None:
            batches = batches.take(steps - start_step)
        batches = batches.prefetch(_BATCHES_AHEAD).with_options(options)
        device = session.step_device()
        if device != _HOST:
            # The pixels are still bytes. Without this their copy would begin with the step, which
            # has nothing else to do meanwhile.
            batches = batches.apply(tf.data.experimental.copy_to_device(device, _HOST))
    with tf.name_scope(scope), tf.device(device):
        if device != _HOST:
            batches = batches.prefetch(1)
        iterator = tf.compat.v1.data.make_initializable_iterator(batches)
        return Stream(
            batch=Batch(*iterator.get_next()),
            initializer=iterator.initializer,
            start_step=start_step,
            steps=steps,
            rows=rows,
        )
