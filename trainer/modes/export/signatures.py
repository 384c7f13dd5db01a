"""A SavedModel: from encoded images, or from pixels, to classes and their names."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

from trainer.config import DataConfig
from trainer.graph import accuracy
from trainer.graph.losses import build_probabilities
from trainer.inputs.images.graph_parts import build_network_input
from trainer.modes.export.frozen import Frozen

ENCODED = tf1.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY
PIXELS = "images"
# The names of the inputs of the two signatures.
ENCODED_INPUT = "image_bytes"
PIXELS_INPUT = "images"
PIXELS_MEANING = "uint8 [batch, image_size, image_size, 3]"
LABELS = "labels.txt"
# The outputs with names, by those with the classes' numbers.
NAMES_OF = {"classes": "names", "top_classes": "top_names"}


def write(
    folder: Path, frozen: Frozen, config: DataConfig, names: Sequence[str], precision: str
) -> None:
    """Writes a SavedModel of a network.

    Both signatures are parts of one graph: that of pixels begins where encoded images have become
    pixels, so that the network's constants are there once.

    Args:
      folder: the folder to make.
      frozen: the network.
      config: the way from encoded images to the network's input.
      names: the names of all classes, each in one line.
      precision: the type of the network's operations, which it has already.

    Raises:
      OSError, tf.errors.OpError: it can't be written.
    """
    del precision
    with tf.Graph().as_default(), tempfile.TemporaryDirectory() as assets:
        encoded = tf1.placeholder(tf.string, [None], name=ENCODED_INPUT)
        # As in training: a GPU's operations would round some pixels otherwise.
        with tf.name_scope("decode"), tf.device("/cpu:0"):
            pixels = build_network_input(encoded, config)
        pixels = tf.identity(pixels, name=PIXELS_INPUT)
        outputs = _build_outputs(frozen, pixels)
        outputs |= _build_names(outputs, names)
        path = Path(assets) / LABELS
        write_labels(path, names)
        asset = tf.constant(str(path), name="labels")
        _save(
            folder,
            {
                ENCODED: _signature({ENCODED_INPUT: encoded}, outputs),
                PIXELS: _signature({PIXELS_INPUT: pixels}, outputs),
            },
            assets=[asset],
        )


def build_of_pixels(frozen: Frozen, image_size: int) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Adds a network for other programs to convert: it takes pixels, and has no strings.

    Returns:
      the placeholder of its pixels, and its outputs by name.
    """
    shape = [None, image_size, image_size, 3]
    pixels = tf1.placeholder(tf.uint8, shape, name=PIXELS_INPUT)
    return pixels, _build_outputs(frozen, pixels)


def write_of_pixels(folder: Path, frozen: Frozen, image_size: int) -> None:
    """Writes a SavedModel of the same.

    Raises:
      OSError, tf.errors.OpError: it can't be written.
    """
    with tf.Graph().as_default():
        pixels, outputs = build_of_pixels(frozen, image_size)
        _save(folder, {PIXELS: _signature({PIXELS_INPUT: pixels}, outputs)})


def write_labels(path: Path, names: Sequence[str]) -> None:
    """Writes the names of the classes by number, one in a line.

    Raises:
      OSError: they can't be written.
    """
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _save(
    folder: Path, signatures: dict[str, SignatureDef], assets: Sequence[tf.Tensor] = ()
) -> None:
    """Writes the graph that is being built as a SavedModel."""
    builder = tf1.saved_model.Builder(str(folder))
    with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
        builder.add_meta_graph_and_variables(
            session,
            [tf1.saved_model.tag_constants.SERVING],
            signature_def_map=signatures,
            assets_collection=list(assets),
            strip_default_attrs=True,  # So that older servers read it, too.
        )
    builder.save()


def _build_outputs(frozen: Frozen, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns a network's predictions; the first class is that of `accuracy.predict`."""
    (logits,) = tf.import_graph_def(
        frozen.graph_def,
        input_map={frozen.images: pixels},
        return_elements=[frozen.logits],
        name="",
    )
    with tf.name_scope("outputs"):
        probabilities = build_probabilities(logits, frozen.loss, name="probabilities")
        # By logits: different ones may have the same probability, as rounded.
        best = tf.math.top_k(logits, min(accuracy.BEST, logits.shape[-1])).indices
        return {
            "logits": logits,
            "probabilities": probabilities,
            "classes": accuracy.predict(logits),
            "top_classes": tf.cast(best, tf.int64, name="top_classes"),
            "top_probabilities": tf.gather(
                probabilities, best, batch_dims=1, name="top_probabilities"
            ),
        }


def _build_names(outputs: dict[str, tf.Tensor], names: Sequence[str]) -> dict[str, tf.Tensor]:
    """Returns the names of the classes that a network predicts."""
    with tf.name_scope("outputs"):
        table = tf.constant(list(names), tf.string, name="table_of_names")
        return {
            NAMES_OF[classes]: tf.gather(table, outputs[classes], name=NAMES_OF[classes])
            for classes in NAMES_OF
        }


def _signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> SignatureDef:
    inputs_info, outputs_info = (
        {
            name: TensorInfo(
                name=tensor.name,
                dtype=tensor.dtype.as_datatype_enum,
                tensor_shape=tensor.shape.as_proto(),
            )
            for name, tensor in tensors.items()
        }
        for tensors in (inputs, outputs)
    )
    return SignatureDef(
        inputs=inputs_info,
        outputs=outputs_info,
        method_name=tf1.saved_model.signature_constants.PREDICT_METHOD_NAME,
    )
