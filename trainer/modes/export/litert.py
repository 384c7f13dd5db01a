"""A network for LiteRT, once called TensorFlow Lite: for phones and small computers."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from trainer.config import DataConfig
from trainer.modes.export import signatures
from trainer.modes.export.frozen import Frozen, NotExportableError
from trainer.process import texts

NAME = "model.tflite"


def write(
    folder: Path, frozen: Frozen, config: DataConfig, names: Sequence[str], precision: str
) -> None:
    """Writes a network as model.tflite, with its classes' names beside it.

    Args:
      folder: the folder to make.
      frozen: the network, in float32.
      config: the size of its images.
      names: the names of all classes, each in one line.
      precision: the type in which weights are stored: float32 or float16. They are computed with in
        float32.

    Raises:
      OSError, tf.errors.OpError: it can't be written.
      NotExportableError: it has an operation that LiteRT does not know.
    """
    with tempfile.TemporaryDirectory() as temporary:
        saved_model = Path(temporary) / "saved_model"
        signatures.write_of_pixels(saved_model, frozen, config.image_size)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(saved_model), signature_keys=[signatures.PIXELS]
        )
        if precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = converter.convert()
        except Exception as error:  # Its own class is none of TensorFlow's public names.
            raise NotExportableError(
                f"LiteRT's converter refuses it ({texts.first_line(error)})"
            ) from error
    folder.mkdir()
    (folder / NAME).write_bytes(content)
    signatures.write_labels(folder / signatures.LABELS, names)
