"""A decoder of single images outside of the pipeline's graph, to find those that are damaged."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from trainer.inputs.images import encoded
from trainer.inputs.images.pixels import decode_window
from trainer.inputs.source import BadImageError

tf1 = tf.compat.v1


class Decoder:
    """The pipeline's decoder in a session of its own, on the CPU. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: tf.compat.v1.Session | None = None

    def _create(self) -> tf.compat.v1.Session:
        """Builds the graph of the decoder and opens its session."""
        with tf.Graph().as_default() as graph:
            self._inputs = (
                tf1.placeholder(tf.string, []),
                tf1.placeholder(tf.int32, []),
                tf1.placeholder(tf.int32, [4]),
            )
            self._pixels = decode_window(*self._inputs)
        options = tf1.ConfigProto(
            device_count={"GPU": 0},
            intra_op_parallelism_threads=1,
            inter_op_parallelism_threads=-1,  # Operations run on the calling thread.
        )
        return tf1.Session(graph=graph, config=options)

    def decode(
        self, data: bytes, header: encoded.ImageHeader, window: Sequence[int] | None = None
    ) -> npt.NDArray[Any]:
        """Decodes an image, or a part of it.

        Args:
          data: the encoded image.
          header: the image's header, as `encoded.read_header` returns it.
          window: top, left, height and width of the part. None: the whole image.

        Returns:
          uint8 [height, width, 3].

        Raises:
          BadImageError: it cannot be decoded, or is smaller than its header says.
        """
        with self._lock:
            if self._session is None:
                self._session = self._create()
        values = (data, header.decoder, window or (0, 0, header.height, header.width))
        try:
            return self._session.run(self._pixels, dict(zip(self._inputs, values, strict=True)))
        except tf.errors.InvalidArgumentError as error:
            name = encoded.FORMATS[header.decoder].name
            raise BadImageError(f"a {name} that is damaged or cut off") from error
