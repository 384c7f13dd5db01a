"""scripts/convert_keras_weights.py: what it refuses, each in one line."""

import functools
import json
import sys
import zipfile

from shared import keras_weights
from shared.keras_weights import WeightsFile

import convert_keras_weights
import h5py
import numpy as np
import pytest
import tensorflow as tf
from processes import ROOT, run

from trainer.errors import UserError

# Of Keras itself, where it turns TensorFlow's variables into NumPy's arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCRIPT = ROOT / "scripts" / "convert_keras_weights.py"


@pytest.fixture(scope="module", autouse=True)
def keras():
    """The module keras, loaded here for these tests alone; each kind of network is built once."""
    import keras

    with pytest.MonkeyPatch.context() as patching:
        create = functools.cache(keras_weights.create_model)
        patching.setattr(keras_weights, "create_model", lambda kind, **_: create(kind))
        yield keras


def load(path):
    """Keras' model with the weights of a file."""
    file = WeightsFile(path)
    model = keras_weights.create_model(file.kind)
    file.load(model)
    return model


def fault_of(path):
    """Returns what is said of a file that is not loaded."""
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(source, target, change):
    """Copies a file .keras with another description of its layers."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename == "config.json":
                config = json.loads(data)
                change(config["config"]["layers"])
                data = json.dumps(config).encode()
            new.writestr(item, data)


@pytest.mark.slow
def test_a_network_that_computes_something_else_is_one_line(keras, tmp_path):
    names = "Keras' ResNet50V2, ResNet101V2, ResNet152V2"

    def told(path, fault):
        advice = "of a model that has it as a layer, the file of model.get_layer(...).save_weights"
        assert fault_of(path) == (
            f"--weights: must be of one of {names}, got '{path}', which {fault}. "
            f"Give one of the network alone: {advice}"
        )

    earlier = tmp_path / "v1.weights.h5"
    keras.applications.ResNet50(weights=None, include_top=False).save_weights(earlier)
    told(earlier, "has other weights than ResNet50V2: 6 more of [64]")
    thin = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    thin.save(tmp_path / "thin.h5")
    told(tmp_path / "thin.h5", "has 1 convolutions and 0 fully connected layers")

    features = keras.applications.ResNet50V2(weights=None, include_top=False, pooling="avg")
    nested = keras.Sequential([keras.Input((32, 32, 3)), features, keras.layers.Dense(3)])
    nested.save_weights(tmp_path / "nested.weights.h5")
    assert "which is not loaded by it (Layer 'conv1_conv' expected 2 variables, but received 0" in (
        fault_of(tmp_path / "nested.weights.h5")
    )
    # One with a head of its own is the same network.
    joined = keras.Model(features.input, keras.layers.Dense(3)(features.output))
    joined.save(tmp_path / "joined.keras")
    read = WeightsFile(tmp_path / "joined.keras")
    assert read.kind == ("ResNet50V2", 3)
    read.load(keras_weights.create_model(read.kind))

    def other_epsilon(layers):
        (norm,) = (layer for layer in layers if layer["config"]["name"] == "post_bn")
        norm["config"]["epsilon"] = 0.001

    rewrite(tmp_path / "joined.keras", tmp_path / "other.keras", other_epsilon)
    assert "also has a layer BatchNormalization(epsilon=0.001, " in (
        fault_of(tmp_path / "other.keras")
    )
    rewrite(tmp_path / "joined.keras", tmp_path / "cut.keras", lambda layers: layers.pop(2))
    assert "lacks a layer Conv2D(strides=[2, 2], " in fault_of(tmp_path / "cut.keras")


def test_a_file_that_can_not_be_read_is_one_line(tmp_path):
    (tmp_path / "text.h5").write_text("weights")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["weights"] = np.zeros([3, 3, 64, 64])
    content = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as file:
        file.writestr("config.json", "{}")
    for name, reason in (
        ("text.h5", "Unable to synchronously open file (file signature not found)"),
        ("cut.h5", "Unable to synchronously open file (truncated file: "),
        ("other.keras", "There is no item named 'model.weights.h5' in the archive"),
    ):
        told = fault_of(tmp_path / name)
        assert told.startswith("--weights: must be a file .keras, .weights.h5 or .h5 of Keras, got")
        assert f"'{tmp_path}/{name}', which can't be read (" in told
        assert reason in told
    for path in (tmp_path / "none.h5", tmp_path):
        assert fault_of(path) == f"--weights: must be a file that exists, or imagenet, got '{path}'"


def save_variables(path, **variables):
    """A checkpoint with these variables."""
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=[name.replace("__", "/") for name in variables],
        shape_and_slices=[""] * len(variables),
        tensors=list(variables.values()),
    )


def test_a_checkpoint_of_another_network_is_not_converted_back(tmp_path):
    def told(folder):
        with pytest.raises(UserError) as caught:
            convert_keras_weights.write_keras(str(folder), tmp_path / "back.keras")
        return str(caught.value)

    assert told(tmp_path) == f"--init_checkpoint: {tmp_path} has no checkpoint model.ckpt-*"
    prefix = tmp_path / "model.ckpt-0"
    save_variables(prefix, vgg_a__conv1__weights=tf.zeros([3]))
    of_ours = "keras_resnet_v2_50 or keras_resnet_v2_101 or keras_resnet_v2_152"
    rule = f"--init_checkpoint: must be of {of_ours}, got {prefix}, which is of"
    assert told(tmp_path) == f"{rule} another network"
    save_variables(prefix, resnet_v2_50__conv1__weights=tf.zeros([3]))
    (tmp_path / "model.json").write_text('{"model": "resnet_v2_50"}')
    assert told(tmp_path) == f"{rule} resnet_v2_50"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".data-00000-of-00001",
        ".index",
        ".json",
    ]


@pytest.mark.slow
def test_a_checkpoint_that_lacks_variables_is_one_line(tmp_path):
    save_variables(tmp_path / "model.ckpt-0", resnet_v2_50__conv1__weights=tf.zeros([3]))
    with pytest.raises(UserError) as caught:
        convert_keras_weights.write_keras(str(tmp_path), tmp_path / "back.keras")
    assert str(caught.value).startswith(
        f"checkpoint {tmp_path}/model.ckpt-0 is of another network or optimizer: "
        "resnet_v2_50/conv1/weights is [3], which must be [7, 7, 3, 64]; "
    )


def convert(*arguments):
    return run([sys.executable, str(SCRIPT), *map(str, arguments)], cwd="/")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--out={0}/x"], 2, "error: must be given: --weights with --out, or --init_checkpoint"),
        (["--weights=a", "--to_keras=b"], 2, "error: --weights: must not be given with --to_keras"),
        (["--weights={0}/a", "--out={0}"], 1, "--out: must not be there yet, got '{0}'"),
        (["--weights={0}/a", "--out={0}/x"], 1, "--weights: must be a file that exists, or imag"),
        (["--weights=none", "--out={0}/x"], 1, "--model: must be given with --weights=none, got"),
        (["--init_checkpoint={0}", "--to_keras={0}/x.h5"], 1, "--to_keras: must end with .keras"),
    ],
)
@pytest.mark.processes
def test_a_wrong_command_line_is_one_line_and_leaves_nothing(tmp_path, arguments, status, message):
    done = convert(*(argument.format(tmp_path) for argument in arguments))
    assert done.returncode == status
    assert done.stderr.splitlines()[-1].startswith(
        f"convert_keras_weights.py: {message.format(tmp_path)}"
    )
    assert status == 2 or len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
