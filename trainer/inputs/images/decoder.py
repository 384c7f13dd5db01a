"""A decoder of single images outside of the pipeline's graph, to find those that are damaged."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from trainer.inputs.images import by_pillow, encoded, graph_decoders
from trainer.inputs.images.pixels import decode_window
from trainer.inputs.source import BadImageError

tf1 = tf.compat.v1


class Decoder:
    """The pipeline's decoder in a session of its own, on the CPU. Several threads may use it."""

    def __init__(self, resize: str = "bilinear") -> None:
        """Creates a decoder whose graph is built when it is first needed.

        Args:
          resize: --resize of the pipeline, by which JPEGs are decoded.
        """
        self._resize = resize
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
            self._pixels = decode_window(*self._inputs, self._resize)
        options = tf1.ConfigProto(
            device_count={"GPU": 0},
            intra_op_parallelism_threads=1,
            inter_op_parallelism_threads=-1,  # Operations run on the calling thread.
        )
        return tf1.Session(graph=graph, config=options)

    def decode(self, data: bytes, header: encoded.ImageHeader) -> npt.NDArray[Any]:
        """Decodes an image as it is stored.

        Args:
          data: the encoded image.
          header: the image's header, as `encoded.read_header` returns it.

        Returns:
          uint8 [height, width, 3].

        Raises:
          BadImageError: it cannot be decoded, or is smaller than its header says.
        """
        if encoded.FORMATS[header.format].decode is None:
            try:
                pixels = by_pillow.decode(data)
                if pixels.shape[:2] != (header.height, header.width):
                    raise BadImageError("its size is not that of its header")
                return pixels
            except BadImageError as error:
                raise encoded.name_format(error, header.format) from error
        number = graph_decoders.number_of(header.format, 1)
        return self.decode_part(data, number, (0, 0, header.height, header.width))

    def decode_part(self, data: bytes, decoder: int, window: Sequence[int]) -> npt.NDArray[Any]:
        """Decodes a part of an image, perhaps reduced, as the pipeline's graph does.

        Args:
          data: the encoded image.
          decoder: the number of the decoder; see `pixels.Rows`.
          window: top, left, height and width of the part of the image, or of the reduced image.

        Returns:
          uint8 [height, width, 3].

        Raises:
          BadImageError: it cannot be decoded, or is smaller than its header says.
        """
        with self._lock:
            if self._session is None:
                self._session = self._create()
        values = (data, decoder, tuple(window))
        try:
            return self._session.run(self._pixels, dict(zip(self._inputs, values, strict=True)))
        except tf.errors.InvalidArgumentError as error:
            name = encoded.FORMATS[graph_decoders.split(decoder)[0]].name
            raise BadImageError(f"a {name} that is damaged or cut off") from error
