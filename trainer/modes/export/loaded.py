"""Runs a SavedModel as a client that has TensorFlow alone would.

usage: python loaded.py SAVED_MODEL FOLDER

FOLDER has pixels.npy and encoded images, *.image; it gets the logits that each signature makes of
them: images.npy and serving_default.npy. Nothing of this program is imported.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


def main() -> None:
    """Runs the command line."""
    signatures = tf.saved_model.load(sys.argv[1]).signatures
    folder = Path(sys.argv[2])
    encoded = [path.read_bytes() for path in sorted(folder.glob("*.image"))]
    inputs = {
        "images": {"images": tf.constant(np.load(folder / "pixels.npy"))},
        "serving_default": {"image_bytes": tf.constant(encoded)},
    }
    for name, tensors in inputs.items():
        np.save(folder / f"{name}.npy", signatures[name](**tensors)["logits"].numpy())


if __name__ == "__main__":
    main()
