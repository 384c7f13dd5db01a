"""A client that has LiteRT or ONNX Runtime alone: prints what a network predicts, as JSON.

usage: python -I served_elsewhere.py NETWORK PIXELS

PIXELS is an array as NumPy saves it. It is given whole, and its first example alone after it.
"""

import json
import sys

import numpy as np


def load(network):
    if network.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(network)
        names = [output.name for output in session.get_outputs()]
        return lambda pixels: dict(zip(names, session.run(None, {"images": pixels}), strict=True))
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(network).get_signature_runner("images")
    return lambda pixels: runner(images=pixels)


def main():
    network, pixels = sys.argv[1], np.load(sys.argv[2])
    run = load(network)
    predictions = [
        {name: np.asarray(values).tolist() for name, values in run(part).items()}
        for part in (pixels, pixels[:1])
    ]
    foreign = {"tensorflow", "trainer", "models", "flags", "tf_slim", "horovod"} & set(sys.modules)
    print(json.dumps({"all": predictions[0], "first": predictions[1], "loaded": sorted(foreign)}))


if __name__ == "__main__":
    main()
