"""The SavedModel's graph: from encoded images, or from pixels, to classes and their names."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

from trainer.config import DataConfig
from trainer.graph import accuracy
from trainer.inputs.images.graph_parts import build_network_input
from trainer.modes.export.frozen import Frozen
from trainer.process import texts

ENCODED = tf1.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY
PIXELS = "images"
# The names of the inputs of the two signatures.
ENCODED_INPUT = "image_bytes"
PIXELS_INPUT = "images"
LABELS = "labels.txt"
_BEST = 5


def write(folder: Path, frozen: Frozen, config: DataConfig, names: Sequence[str]) -> None:
    """Writes a SavedModel of a network.

    Both signatures are parts of one graph: that of pixels begins where encoded images have become
    pixels, so that the network's constants are there once.

    Args:
      folder: the folder to make.
      frozen: the network.
      config: the way from encoded images to the network's input.
      names: the names of all classes.

    Raises:
      OSError, tf.errors.OpError: it can't be written.
    """
    lines = [texts.printable(name) for name in names]
    with tf.Graph().as_default(), tempfile.TemporaryDirectory() as assets:
        encoded = tf1.placeholder(tf.string, [None], name=ENCODED_INPUT)
        # As in training: a GPU's operations would round some pixels otherwise.
        with tf.name_scope("decode"), tf.device("/cpu:0"):
            pixels = build_network_input(encoded, config)
        pixels = tf.identity(pixels, name=PIXELS_INPUT)
        (logits,) = tf.import_graph_def(
            frozen.graph_def,
            input_map={frozen.images: pixels},
            return_elements=[frozen.logits],
            name="",
        )
        outputs = _build_outputs(logits, lines)
        path = Path(assets) / LABELS
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        asset = tf.constant(str(path), name="labels")
        builder = tf1.saved_model.Builder(str(folder))
        with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
            builder.add_meta_graph_and_variables(
                session,
                [tf1.saved_model.tag_constants.SERVING],
                signature_def_map={
                    ENCODED: _signature({ENCODED_INPUT: encoded}, outputs),
                    PIXELS: _signature({PIXELS_INPUT: pixels}, outputs),
                },
                assets_collection=[asset],
                strip_default_attrs=True,  # So that older servers read it, too.
            )
        builder.save()


def _build_outputs(logits: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
    """Returns what a signature answers; the first class is that of `accuracy.predict`."""
    with tf.name_scope("outputs"):
        table = tf.constant(list(names), tf.string, name="table_of_names")
        probabilities = tf.nn.softmax(logits, name="probabilities")
        classes = accuracy.predict(logits)
        # By logits: different ones may have the same probability, as rounded.
        best = tf.math.top_k(logits, min(_BEST, len(names))).indices
        return {
            "logits": logits,
            "probabilities": probabilities,
            "classes": classes,
            "names": tf.gather(table, classes, name="names"),
            "top_classes": tf.cast(best, tf.int64, name="top_classes"),
            "top_names": tf.gather(table, best, name="top_names"),
            "top_probabilities": tf.gather(
                probabilities, best, batch_dims=1, name="top_probabilities"
            ),
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
