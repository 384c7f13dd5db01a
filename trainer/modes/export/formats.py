"""The formats of --export_format: how a network is written, and what it takes."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.config import DataConfig
from trainer.errors import UserError
from trainer.modes.export import litert, onnx_model, signatures
from trainer.modes.export.frozen import Frozen

_PIXELS = {signatures.PIXELS: {signatures.PIXELS_INPUT: signatures.PIXELS_MEANING}}


class Format(NamedTuple):
    """A format of exported networks.

    Attributes:
      runtime: the program that predicts with it.
      signatures: the inputs of each signature, and what they take, by name.
      write: writes a network into a folder: (folder, network, the way from encoded images to the
        network's input, names of all classes, each in one line, --export_precision). Raises
        OSError, tf.errors.OpError or `frozen.NotExportableError`.
      computes_in_float32: whether --export_precision is that of the weights as they are stored, and
        not of the network's operations.
      packages: packages that it needs beside this program's own requirements: the name of a
        distribution by that of its module.
    """

    runtime: str
    signatures: Mapping[str, Mapping[str, str]]
    write: Callable[[Path, Frozen, DataConfig, Sequence[str], str], None]
    computes_in_float32: bool = False
    packages: Mapping[str, str] = {}


FORMATS = {
    "saved_model": Format(
        "TensorFlow",
        {
            **_PIXELS,
            signatures.ENCODED: {signatures.ENCODED_INPUT: "encoded JPEG or PNG, any size"},
        },
        signatures.write,
    ),
    "tflite": Format(
        "LiteRT",
        _PIXELS,
        litert.write,
        computes_in_float32=True,
        packages={"ai_edge_litert": "ai-edge-litert"},
    ),
    "onnx": Format(
        "ONNX Runtime",
        _PIXELS,
        onnx_model.write,
        packages={"onnx": "onnx", "onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx"},
    ),
}


def find(name: str) -> Format:
    """Returns a format by the name that --export_format has.

    Raises:
      UserError: it needs packages that are not installed.
    """
    found = FORMATS[name]
    missing = [
        package
        for module, package in found.packages.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise UserError(
            f"--export_format: {name} needs {' and '.join(missing)}; to install what it needs: "
            f"pip install {' '.join(found.packages.values())}"
        )
    return found
