"""Decodes single images outside of the pipeline's graph, to tell which of them cannot be."""

import threading

import numpy as np
import tensorflow as tf

from trainer.inputs.encoded import JPEG, BadImageError, ImageHeader


class Decoder:
    """The pipeline's own decoders in a session of their own, on the CPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: tf.compat.v1.Session | None = None

    def _create(self) -> tf.compat.v1.Session:
        with tf.Graph().as_default() as graph:
            self._contents = tf.compat.v1.placeholder(tf.string, [])
            self._jpeg = tf.io.decode_jpeg(self._contents, channels=3)
            self._png = tf.io.decode_png(self._contents, channels=3)
        options = tf.compat.v1.ConfigProto(
            device_count={"GPU": 0},
            intra_op_parallelism_threads=1,
            inter_op_parallelism_threads=1,
        )
        return tf.compat.v1.Session(graph=graph, config=options)

    def decode(self, data: bytes, header: ImageHeader) -> np.ndarray:
        """Decodes a whole image.

        Returns:
          uint8 [height, width, 3].

        Raises:
          BadImageError: it cannot be decoded, or has another size than its header says.
        """
        with self._lock:
            if self._session is None:
                self._session = self._create()
        pixels = self._jpeg if header.decoder == JPEG else self._png
        try:
            decoded = self._session.run(pixels, {self._contents: data})
        except tf.errors.InvalidArgumentError as error:
            raise BadImageError(
                error.message.split("\n")[0].split("[[")[0].strip()
            ) from error
        if decoded.shape[:2] != (header.height, header.width):
            raise BadImageError(
                f"{decoded.shape[1]} x {decoded.shape[0]} pixels, "
                f"where its header says {header.width} x {header.height}"
            )
        return decoded
