"""Small data sets for the tests of the input pipeline, and ways to read streams to NumPy."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.inputs import dataset

tf1 = tf.compat.v1


def encode(pixels, image_format="PNG", **options):
    """An encoded image of uint8 [height, width, 3] or [height, width]."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, **options)
    return out.getvalue()


def noise(seed, height=24, width=20):
    """Random pixels: uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_folder(root, per_class, *, image_format="PNG"):
    """Writes <root>/<class>/<n>.<suffix>; `per_class` is {class: number of images}."""
    for label, (name, count) in enumerate(per_class.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            data = encode(noise(1000 * label + number), image_format)
            (root / name / f"{number}.{image_format.lower()}").write_bytes(data)


class Numbered:
    """A split in which every example has a label of its own, so that a batch says what it read."""

    def __init__(self, count):
        self.labels = np.arange(count)
        self.reads = []

    def read(self, example):
        self.reads.append(example)
        return encode(noise(example, 12, 12))

    def where(self, example):
        return f"example {example}"


def numbered_dataset(config, train=0, validation=0):
    """A data set of two `Numbered` splits."""
    source = dataset.Source("numbered", Numbered(train), Numbered(validation), None, None, "")
    info = dataset.DatasetInfo("numbered", train, validation, max(train, validation), None, "")
    return dataset.Dataset(config, source, info)


def create_config(**fields):
    """Eight pixels, batches of four, if nothing else is said."""
    return DataConfig(**{"image_size": 8, "batch_size": 4, **fields})


def read_batches(build, *, start=0, steps=None):
    """Builds a stream in a graph of its own and runs it.

    Args:
      build: makes the stream.
      start: first step.
      steps: how many; None: as many as the stream has.

    Returns:
      (list of batches as NumPy, the stream).
    """
    with tf.Graph().as_default() as graph:
        stream = build()
        graph.finalize()
        return _run_stream(stream, start, steps), stream


def _run_stream(stream, start, steps):
    """Batches of a stream, in a session of its own."""
    with tf1.Session() as session:
        session.run(stream.initializer, {stream.start_step: start})
        count = stream.steps - start if steps is None else steps
        try:
            return [session.run(stream.batch) for _ in range(count)]
        except tf.errors.OpError as error:
            reason = stream.explain(error)
            if reason is None:
                raise
            raise reason from None


def read_starts(data, starts, *, worker, seed, end):
    """Batches from each start to step `end`: a graph for all, which takes long to build.

    In the order of `starts`: of one before, only what Python keeps for the stream could be left.
    """
    with tf.Graph().as_default() as graph:
        stream = data.build_train(worker, seed=seed)
        graph.finalize()
        return [_run_stream(stream, start, end - start) for start in starts]


def read_train(data, *, worker=None, seed=0, start=0, steps):
    """Batches `start` to `start + steps` of a worker."""
    return read_batches(
        lambda: data.build_train(worker or Worker(), seed=seed), start=start, steps=steps
    )[0]


def read_evaluation(data, *, worker=None):
    """All batches of a worker's evaluation."""
    return read_batches(lambda: data.build_evaluation(worker or Worker()))[0]


def labels_of(batches):
    """The labels of batches, one after the other: int32 [examples]."""
    return np.concatenate([batch.labels for batch in batches])


def _feature(values):
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    kind = kinds[type(values[0]) if values else int]
    return tf.train.Feature(**{kind: getattr(tf.train, f"{kind[:-5].title()}List")(value=values)})


def example(features=None, **more):
    """A serialized `tf.train.Example` of lists of bytes, integers or floats."""
    named = {name: _feature(values) for name, values in {**(features or {}), **more}.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()
