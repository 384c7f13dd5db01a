"""Runs an exported network as a client would that has its runtime alone.

usage: python loaded.py EXPORTED FOLDER

FOLDER has pixels.npy and, for a SavedModel, encoded images, *.image; it gets the logits that each
signature makes of them: images.npy, and serving_default.npy. Nothing of this program is imported.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def predict_as_saved_model(exported: Path, folder: Path, pixels: Any) -> Iterator[tuple[str, Any]]:
    """Yields the logits of each signature, by its name."""
    # TensorFlow loads Keras, with all that Keras loads, where it is installed: a third of its time.
    sys.modules["keras.src.optimizers"] = None  # type: ignore[assignment]  # So its import fails.
    import tensorflow as tf

    signatures = tf.saved_model.load(str(exported)).signatures
    encoded = [path.read_bytes() for path in sorted(folder.glob("*.image"))]
    inputs = {
        "images": {"images": tf.constant(pixels)},
        "serving_default": {"image_bytes": tf.constant(encoded)},
    }
    for name, tensors in inputs.items():
        yield name, signatures[name](**tensors)["logits"].numpy()


def predict_as_litert(exported: Path, folder: Path, pixels: Any) -> Iterator[tuple[str, Any]]:
    """Yields the logits of the only signature, and its name."""
    del folder
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(exported / "model.tflite"))
    yield "images", interpreter.get_signature_runner("images")(images=pixels)["logits"]


def predict_as_onnx(exported: Path, folder: Path, pixels: Any) -> Iterator[tuple[str, Any]]:
    """Yields the logits of the only signature, and its name."""
    del folder
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(exported / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    yield "images", session.run(["logits"], {"images": pixels})[0]


PREDICT_BY_FILE = {
    "saved_model.pb": predict_as_saved_model,
    "model.tflite": predict_as_litert,
    "model.onnx": predict_as_onnx,
}


def main() -> None:
    """Runs the command line."""
    exported, folder = map(Path, sys.argv[1:])
    (predict,) = (each for name, each in PREDICT_BY_FILE.items() if (exported / name).exists())
    for name, logits in predict(exported, folder, np.load(folder / "pixels.npy")):
        np.save(folder / f"{name}.npy", logits)


if __name__ == "__main__":
    main()
