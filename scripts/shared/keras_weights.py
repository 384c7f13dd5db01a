"""Keras' ResNet50V2, ResNet101V2 and ResNet152V2, and their weights under slim's names.

Keras is loaded where a function needs it: whether a file is of one of these networks is told before
that. Of a file, only weights are read, never a model with its code.
"""

import collections
import contextlib
import io
import json
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.errors import UserError
from trainer.process import texts

# Keras' name of each network: the scope of its variables here, and its number of convolutions.
SCOPES = {
    "ResNet50V2": "resnet_v2_50",
    "ResNet101V2": "resnet_v2_101",
    "ResNet152V2": "resnet_v2_152",
}
_CONVOLUTIONS = {53: "ResNet50V2", 104: "ResNet101V2", 155: "ResNet152V2"}
BATCH_NORM_EPSILON = 1.001e-5
FEATURES = 2048

# Scopes by the names of Keras' layers, outside of units and within them.
_OUTSIDE = {"conv1_conv": "conv1", "post_bn": "postnorm", "predictions": "logits"}
_UNIT = re.compile(r"conv([2-5])_block(\d+)_(\w+)")
_WITHIN = {
    "preact_bn": "preact",
    "0_conv": "shortcut",
    "1_conv": "conv1",
    "1_bn": "conv1/BatchNorm",
    "2_conv": "conv2",
    "2_bn": "conv2/BatchNorm",
    "3_conv": "conv3",
}
_VARIABLES = {"kernel": "weights", "bias": "biases"}
# Layers without weights that leave the logits, or the last map, as they are.
_WITHOUT_EFFECT = ("InputLayer", "Dropout", "GlobalAveragePooling2D", "GlobalMaxPooling2D")
# What decides what a layer computes, beside its weights.
_SETTINGS = (
    *("strides", "padding", "dilation_rate", "groups", "data_format", "pool_size"),
    *("epsilon", "center", "scale", "use_bias"),
)
_ADVICE = (
    "Give one of the network alone: of a model that has it as a layer, the file of "
    "model.get_layer(...).save_weights"
)

# What readers of HDF5, zip archives and JSON raise where a file is damaged or another.
_UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
)

Array = npt.NDArray[Any]


class Kind(NamedTuple):
    """A network, as far as its weights depend on it.

    Attributes:
      architecture: Keras' name of it.
      num_classes: width of its last layer; None: the network has no such layer.
    """

    architecture: str
    num_classes: int | None


def create_model(
    kind: Kind,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    activation: str = "softmax",
) -> Any:
    """Creates Keras' model of a network, with random weights or those that Keras downloads.

    Args:
      kind: the network.
      weights: None or `imagenet`.
      image_size: height and width of its images, pixels; None: 224, or any without a last layer.
      activation: what its last layer makes of the logits.

    Raises:
      UserError: the weights can't be downloaded.
    """
    import keras

    # Whatever the user's keras.json says, the variables are to be those that slim has.
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    has_top = kind.num_classes is not None
    create = getattr(keras.applications, kind.architecture)
    shape = None if image_size is None else (image_size, image_size, 3)
    extra = {"classes": kind.num_classes, "classifier_activation": activation} if has_top else {}
    try:
        return create(include_top=has_top, weights=weights, input_shape=shape, **extra)
    except Exception as error:
        if weights is None:
            raise
        raise UserError(
            f"--weights: Keras could not download {kind.architecture}'s ({texts.first_line(error)})"
            ". Download the file elsewhere, and give it: --weights=FILE"
        ) from error


def list_variables(model: Any, scope: str) -> list[tuple[str, Any]]:
    """Returns a model's variables with their names in a checkpoint, in the model's order."""
    return [
        (
            f"{scope}/{_name_layer(layer.name)}/{_VARIABLES.get(variable.name, variable.name)}",
            variable,
        )
        for layer in model.layers
        for variable in layer.weights
    ]


def _name_layer(name: str) -> str:
    """Returns the scope of a layer of Keras, within that of the network."""
    match = _UNIT.fullmatch(name)
    if match is None:
        return _OUTSIDE[name]
    return f"block{int(match[1]) - 1}/unit_{match[2]}/bottleneck_v2/{_WITHIN[match[3]]}"


def shape_of(name: str, variable: Any) -> tuple[int, ...]:
    """Returns the shape that a variable has in a checkpoint: the last layer is a convolution."""
    shape = tuple(variable.shape)
    return (1, 1, *shape) if name.endswith("/logits/weights") else shape


def read_values(model: Any, scope: str) -> dict[str, Array]:
    """Returns a model's weights by their names in a checkpoint."""
    return {
        name: np.asarray(variable.numpy(), np.float32).reshape(shape_of(name, variable))
        for name, variable in list_variables(model, scope)
    }


def assign(model: Any, scope: str, values: Mapping[str, Array]) -> None:
    """Sets a model's weights from those of a checkpoint, by name."""
    for name, variable in list_variables(model, scope):
        variable.assign(values[name].reshape(tuple(variable.shape)))


class WeightsFile:
    """A file of weights, of Keras 3 or of the earlier form of HDF5, and what network it is of.

    Attributes:
      kind: the network.
      activation: the function that its last layer applies to the logits; None: the file has no
        such layer, or does not say.
    """

    def __init__(self, path: Path) -> None:
        """Looks into the file, without Keras.

        Raises:
          UserError: it is missing, damaged, or of another network.
        """
        self._path = path
        if not path.is_file():
            raise UserError(f"--weights: must be a file that exists, or imagenet, got '{path}'")
        self._is_zip = zipfile.is_zipfile(path)
        with self._opened() as file:
            arrays = [tuple(item.shape) for item in _list_weights(file)]
            self._is_early = "layer_names" in file.attrs or "model_weights" in file
        self._shapes = collections.Counter(arrays)
        heads = [shape[1] for shape in self._shapes.elements() if shape[:-1] == (FEATURES,)]
        architecture = _CONVOLUTIONS.get(sum(len(shape) == 4 for shape in arrays))
        if architecture is None or len(heads) > 1:
            raise self._foreign(f"has {_count_kinds(arrays)}")
        self.kind = Kind(architecture, heads[0] if heads else None)
        self.activation = self._find_activation()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Opens the HDF5 file that this is, or has in it."""
        import h5py

        try:
            content: Any = self._path
            if self._is_zip:
                with zipfile.ZipFile(self._path) as archive:
                    content = io.BytesIO(archive.read("model.weights.h5"))
            with h5py.File(content, "r") as file:
                yield file
        except _UNREADABLE as error:
            raise UserError(
                f"--weights: must be a file .keras, .weights.h5 or .h5 of Keras, got "
                f"'{self._path}', which can't be read ({texts.first_line(error)})"
            ) from error

    def _find_activation(self) -> str | None:
        """Returns the activation of the last layer, which a file of a whole model tells."""
        try:
            if self._is_zip:
                with zipfile.ZipFile(self._path) as archive:
                    text = archive.read("config.json")
            else:
                with self._opened() as file:
                    text = file.attrs.get("model_config", "{}")
            last = json.loads(text)["config"]["layers"][-1]
            return last["config"].get("activation") if last["class_name"] == "Dense" else None
        except _UNREADABLE:
            return None  # `load` says what is wrong with it.

    def load(self, model: Any) -> None:
        """Loads the weights into a model that `create_model` made.

        Raises:
          UserError: the file is damaged, or of another network.
        """
        wanted = collections.Counter(tuple(variable.shape) for variable in model.weights)
        if self._shapes != wanted:
            differences = [
                f"{number} {how} of {list(shape)}"
                for how, counter in (
                    ("more", self._shapes - wanted),
                    ("fewer", wanted - self._shapes),
                )
                for shape, number in counter.items()
            ]
            raise self._foreign(
                f"has other weights than {self.kind.architecture}: {differences[0]}"
            )
        if self._is_zip:
            self._check_layers(model)
        # Keras tells what a file is by its name.
        ending = ".keras" if self._is_zip else ".h5" if self._is_early else ".weights.h5"
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, f"model{ending}")
            link.symlink_to(self._path.absolute())
            with warnings.catch_warnings():
                # Of layers that it did not find: what comes of them is looked at below.
                warnings.simplefilter("ignore")
                try:
                    model.load_weights(str(link))
                except _UNREADABLE as error:
                    raise self._foreign(f"is not loaded by it ({_reason(error)})") from error
        with self._opened() as file:
            saved = collections.Counter(_digest(item[()]) for item in _list_weights(file))
        if saved != collections.Counter(_digest(variable.numpy()) for variable in model.weights):
            raise self._foreign("is not loaded by it (some layers kept what they had)")

    def _check_layers(self, model: Any) -> None:
        """Compares what the layers compute, beside their weights: a file .keras says it.

        Raises:
          UserError: they compute something else.
        """
        try:
            with zipfile.ZipFile(self._path) as archive:
                config = json.loads(archive.read("config.json"))
            found = collections.Counter(_list_layers(config["config"]["layers"]))
        except _UNREADABLE as error:
            raise self._foreign(f"does not tell its layers ({_reason(error)})") from error
        layers = json.loads(model.to_json())["config"]["layers"]
        wanted = collections.Counter(_list_layers(layers))
        other = [*(found - wanted), *(wanted - found)]
        if other:
            what = "also has" if found - wanted else "lacks"
            raise self._foreign(f"{what} a layer {other[0]}")

    def _foreign(self, fault: str) -> UserError:
        names = ", ".join(SCOPES)
        return UserError(
            f"--weights: must be of one of Keras' {names}, got '{self._path}', which {fault}. "
            f"{_ADVICE}"
        )


def _list_weights(file: Any) -> list[Any]:
    """Returns the arrays of a file's weights: not those of optimizers, metrics and generators."""
    found: list[Any] = []

    def visit(name: str, item: Any) -> None:
        is_of_model = not name.startswith(("optimizer", "metrics", "_metrics"))
        shape = getattr(item, "shape", None)
        if is_of_model and shape and np.issubdtype(item.dtype, np.floating):
            found.append(item)

    file.visititems(visit)
    return found


def _digest(values: Array) -> int:
    """Returns a checksum of weights, in the type that the network has them in."""
    return zlib.crc32(np.asarray(values, np.float32).tobytes())


def _count_kinds(shapes: Sequence[tuple[int, ...]]) -> str:
    """Returns in words what kinds of weights a file has."""
    convolutions = sum(len(shape) == 4 for shape in shapes)
    products = sum(len(shape) == 2 for shape in shapes)
    return f"{convolutions} convolutions and {products} fully connected layers"


def _list_layers(layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields each layer of a model's configuration as text: class and settings, without names."""
    for layer in layers:
        name, config = layer["class_name"], layer["config"]
        if name in _WITHOUT_EFFECT:
            continue
        settings = {key: config[key] for key in _SETTINGS if config.get(key) is not None}
        if name == "Activation":
            settings["activation"] = config["activation"]
        yield f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})"


def _reason(error: Exception) -> str:
    """Returns what Keras says of an error; of many objects, what it says of the first."""
    _, _, example = str(error).partition("Example error message")
    lines = [line for line in example.splitlines()[1:] if line.strip()]
    return lines[0].strip() if lines else texts.first_line(error)
