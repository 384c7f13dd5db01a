"""A client that has TensorFlow alone: prints what a SavedModel predicts for files, as JSON.

usage: python -I served.py SAVED_MODEL PIXELS FILE...

PIXELS is an array for the signature `images`, as NumPy saves it; the files are encoded images for
`serving_default`, each alone and all together.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

OF_THE_PROGRAM = ("trainer", "models", "flags", "tf_slim", "horovod")


def as_lists(outputs):
    """Outputs of a signature by name, as JSON has them."""
    values = {name: tensor.numpy().tolist() for name, tensor in outputs.items()}
    return json.loads(json.dumps(values, default=bytes.decode))


def main():
    saved_model, pixels, *files = sys.argv[1:]
    loaded = tf.saved_model.load(saved_model)
    serve, of_pixels = (loaded.signatures[name] for name in ("serving_default", "images"))
    encoded = [Path(file).read_bytes() for file in files]
    alone, refused = [], {}
    for file, data in zip(files, encoded, strict=True):
        try:
            alone.append(as_lists(serve(image_bytes=tf.constant([data]))))
        except tf.errors.InvalidArgumentError as error:
            refused[file] = str(error)
    good = [data for file, data in zip(files, encoded, strict=True) if file not in refused]
    found = {
        "images": as_lists(of_pixels(images=tf.constant(np.load(pixels)))),
        "together": as_lists(serve(image_bytes=tf.constant(good))),
        "alone": alone,
        "refused": refused,
        "assets": [
            Path(asset.asset_path.numpy().decode()).read_text(encoding="utf-8")
            for asset in loaded.asset_paths
        ],
        "loaded": sorted(set(OF_THE_PROGRAM) & set(sys.modules)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
