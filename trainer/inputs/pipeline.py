"""The tf.data graph around a reader: chunks of rows in, batches out.

A chunk of the worker's sequence is read by one call into Python and decoded by C++ ops; several
chunks are under way at once, and come out in order. Where an image of a chunk turns out not to be
decodable, the chunk is made again, this time trying every image first (`decode`).
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs.images.pixels import ROW_SHAPES, ROW_TYPES, Rows, build_pixels
from trainer.inputs.rows import EvaluationRows, GuardedRows, TrainRows
from trainer.machine import cores

# Large enough to hide what a call into Python costs, small enough to keep all threads busy.
_CHUNK_SIZES = range(32, 15, -1)
_BATCHES_AHEAD = 2


class Batch(NamedTuple):
    """One worker's examples of one step.

    Attributes:
      images: uint8 [batch_size, image_size, image_size, 3].
      labels: int32 [batch_size].
      weights: float32 [batch_size]: 1 for an example; 0 for a row that does not count.
      shares: float32 [batch_size] in [0, 1]: how much of an example is to stay its own when it is
        mixed (`images.network_input`); 1 without --mixup and --cutmix.
      boxes: int32 [batch_size, 4]: top, left, height and width of what --cutmix replaces; else 0.
    """

    images: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    shares: tf.Tensor
    boxes: tf.Tensor


class Stream:
    """Batches in a graph, and what became of the examples that could not be read.

    Attributes:
      batch: tensors of the next batch, each time they are run.
      initializer: op that starts the stream; feed `start_step`.
      start_step: int64 placeholder, scalar: the first step whose batch is wanted.
      steps: how many batches there are from step 0, the same on every worker; None: no end.
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
        """How many different examples this worker has found to be bad up to now."""
        return self._rows.maker.images.bad_examples if self._rows else 0

    def explain(self, error: tf.errors.OpError) -> UserError | None:
        """Why the stream ended, or None where `error` is not this stream's.

        Args:
          error: what `Session.run` raised. A stream that cannot go on ends: OutOfRangeError.
        """
        if self._rows is None or not isinstance(error, tf.errors.OutOfRangeError):
            return None
        return self._rows.error

    @contextlib.contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Raises the stream's own UserError where it is what ended a session's run."""
        try:
            yield
        except tf.errors.OpError as error:
            reason = self.explain(error)
            if reason is None:
                raise
            reason.known_to_all = False
            raise reason from error


def count_threads(worker: Worker) -> int:
    """This worker's share of the cores that the process may use, at least 1."""
    return cores.worker_cores(worker.local_size)


def _chunk_size(batch_size: int) -> int:
    """Rows to make at a time: if possible, a divisor of the batch size."""
    if batch_size < _CHUNK_SIZES[-1]:
        return batch_size
    return next((size for size in _CHUNK_SIZES if batch_size % size == 0), _CHUNK_SIZES[0])


def _regroup(chunks: tf.data.Dataset, count: int, batch_size: int) -> tf.data.Dataset:
    """Batches out of chunks of `count` rows, without copying them one by one where that can be."""
    if batch_size % count:
        return chunks.unbatch().batch(batch_size, drop_remainder=True)
    if batch_size == count:
        return chunks

    def join(batch: Batch) -> Batch:
        return Batch(*(tf.reshape(part, [batch_size, *part.shape[2:]]) for part in batch))

    return chunks.batch(batch_size // count, drop_remainder=True).map(join)


def _read_op(rows: GuardedRows, start: tf.Tensor, count: int, *, decode: bool) -> Rows:
    """Tensors of a chunk of rows."""
    values = tf.numpy_function(
        lambda start: rows.create(start, count, decode=decode), [start], list(ROW_TYPES)
    )
    return Rows(
        *(
            tf.ensure_shape(value, (count, *shape))
            for value, shape in zip(values, ROW_SHAPES, strict=True)
        )
    )


def _build_chunks(
    starts: tf.data.Dataset, rows: GuardedRows, count: int, config: DataConfig, threads: int
) -> tf.data.Dataset:
    """Batches of `count` examples, made again with care where decoding fails."""
    training = isinstance(rows.maker, TrainRows)

    @tf.function(autograph=False)  # Traced once for both of its uses below.
    def create_batch(row: Rows) -> Batch:
        images = build_pixels(row, config, training=training)
        return Batch(images, row.labels, row.weights, row.shares, row.boxes)

    @tf.autograph.experimental.do_not_convert
    def create_chunk(start: tf.Tensor) -> Batch:
        quick = tf.data.Dataset.from_tensor_slices(_read_op(rows, start, count, decode=False))
        quick = quick.map(create_batch).batch(count, drop_remainder=True).ignore_errors()
        careful = tf.data.Dataset.from_tensors(start)
        careful = careful.map(lambda start: _read_op(rows, start, count, decode=True))
        careful = careful.unbatch().map(create_batch).batch(count, drop_remainder=True)
        return quick.concatenate(careful).take(1).get_single_element()

    chunks = starts.map(create_chunk, num_parallel_calls=threads, deterministic=True)
    return chunks.take_while(lambda batch: batch.weights[0] >= 0)


def build_stream(
    maker: TrainRows | EvaluationRows, config: DataConfig, worker: Worker, *, steps: int | None
) -> Stream:
    """Adds the pipeline to the current graph.

    Args:
      maker: of the rows.
      config: size, augmentation and batch size.
      worker: who reads.
      steps: batches in all; None: no end.
    """
    rows = GuardedRows(maker)
    threads = count_threads(worker)
    batch_size = config.batch_size
    count = _chunk_size(batch_size)
    # TensorFlow's own threads would compete with each other: one core, one image.
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    with tf.name_scope("inputs"), tf.device("/cpu:0"):
        start_step = tf.compat.v1.placeholder(tf.int64, [], name="start_step")
        end = tf.int64.max if steps is None else steps * batch_size
        starts = tf.data.Dataset.range(start_step * batch_size, end, count)
        chunks = _build_chunks(starts, rows, count, config, threads)
        batches = _regroup(chunks, count, batch_size)
        if steps is not None:
            batches = batches.take(steps - start_step)
        iterator = tf.compat.v1.data.make_initializable_iterator(
            batches.prefetch(_BATCHES_AHEAD).with_options(options)
        )
        return Stream(
            batch=Batch(*iterator.get_next()),
            initializer=iterator.initializer,
            start_step=start_step,
            steps=steps,
            rows=rows,
        )
