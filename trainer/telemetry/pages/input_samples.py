"""The first images as the network gets them: augmented, mixed, with their labels."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import Config
from trainer.graph import images as device
from trainer.inputs.pipeline import Stream
from trainer.process import texts
from trainer.telemetry.pages import pictures
from trainer.telemetry.writers.protocol import Writer

_COUNT = 16
TAG = "inputs/augmented"


class SampleGraph(NamedTuple):
    """The first examples of a batch.

    Attributes:
      images: float32 [at most 16, height, width, 3]: images as the network gets them.
      targets: float32 [at most 16, classes]: share of every class in each image.
    """

    images: tf.Tensor
    targets: tf.Tensor


class InputSamples(Protocol):
    """Shows samples of the input."""

    def show(
        self,
        session: tf1.Session,
        stream: Stream,
        writer: Writer,
        *,
        step: int,
        first_batch: int,
    ) -> None:
        """Writes the next images of the stream, which must be initialized again afterwards.

        Args:
          session: session of the graph.
          stream: stream of the training examples.
          writer: writer of the picture.
          step: number of steps done before.
          first_batch: number of batches read before.
        """


class NullInputSamples:
    """The samples of ranks other than 0, and of runs without a --logdir."""

    def show(
        self,
        session: tf1.Session,
        stream: Stream,
        writer: Writer,
        *,
        step: int,
        first_batch: int,
    ) -> None:
        del session, stream, writer, step, first_batch


class DrawnInputSamples:
    """Draws a sheet of the images, with their labels below."""

    def __init__(self, graph: SampleGraph, config: Config, names: Sequence[str]) -> None:
        self._graph = graph
        self._config = config
        self._names = [texts.printable(name) for name in names]

    def show(
        self,
        session: tf1.Session,
        stream: Stream,
        writer: Writer,
        *,
        step: int,
        first_batch: int,
    ) -> None:
        session.run(stream.initializer, {stream.start_step: first_batch})
        samples = session.run(self._graph)
        captions = [_describe(targets, self._names) for targets in samples.targets]
        pixels = device.to_pixels(samples.images, self._config.data)
        picture = pictures.draw_sheet(list(pixels), captions)
        writer.write_summary(step, pictures.build_image(TAG, picture), wall_time=time.time())


def _describe(targets: npt.NDArray[Any], names: Sequence[str]) -> str:
    """Returns the class of an example, or the two that are mixed in it, with their shares."""
    first, *others = np.argsort(-targets, kind="stable")[:2]
    parts = [first, *(other for other in others if targets[other] > 0)]
    if len(parts) == 1:
        return names[first]
    return "\n".join(f"{targets[part]:.2f} {names[part]}" for part in parts)


def build_samples(stream: Stream, config: Config, num_classes: int) -> SampleGraph:
    """Adds the samples to the default graph, on every rank, so that all graphs are the same."""
    images = device.network_input(stream.batch, config.data)
    targets = device.targets(stream.batch, num_classes)
    return SampleGraph(images[:_COUNT], targets[:_COUNT])


def create_input_samples(
    graph: SampleGraph, config: Config, *, rank: int, names: Sequence[str]
) -> InputSamples:
    """Returns what shows the samples of a run.

    Args:
      graph: graph of the samples.
      config: configuration of the run.
      rank: rank of this worker.
      names: names of the classes.
    """
    if rank != 0 or config.run.logdir is None:
        return NullInputSamples()
    return DrawnInputSamples(graph, config, names)
