"""scripts/convert_keras_weights.py, beside Keras' own networks and their predictions."""

import collections
import sys

from shared import keras_weights
from shared.keras_weights import WeightsFile

import convert_keras_weights
import h5py
import numpy as np
import pytest
import tensorflow as tf
from input_data import write_folder
from processes import ROOT, run, trainers
from tf_slim.nets import resnet_v2 as slim_resnet_v2

from models import resnet_v2
from models.slim_compat import slim
from trainer.checkpoints import model_file
from trainer.config import Config
from trainer.graph.network import build_logits

# Of Keras itself, where it turns TensorFlow's variables into NumPy's arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
tf1 = tf.compat.v1
SCRIPT = ROOT / "scripts" / "convert_keras_weights.py"
# Each network in another kind of file; that of the last is how Keras publishes ImageNet's weights.
NETWORKS = [("ResNet50V2", ".keras"), ("ResNet101V2", ".weights.h5"), ("ResNet152V2", ".h5")]
RANGES = {
    "gamma": (0.5, 1.5),
    "beta": (-0.5, 0.5),
    "moving_mean": (-0.5, 0.5),
    "moving_variance": (0.5, 2.0),
    "bias": (-0.1, 0.1),
}


@pytest.fixture(scope="module", autouse=True)
def keras():
    """The module keras, loaded here so that tests of other files go without."""
    import keras

    return keras


def save(model, path):
    """Saves a model, or its weights, as the file's name says."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.suffix == ".keras":
        model.save(path)
    else:
        whole = path.with_name("whole.h5")
        model.save(whole)
        with h5py.File(whole) as source, h5py.File(path, "w") as target:
            target.attrs.update(source["model_weights"].attrs)
            for name in source["model_weights"]:
                source.copy(f"model_weights/{name}", target)


class Converted:
    """A network of Keras with random weights, its logits, its file, and the checkpoint of that."""

    def __init__(self, keras, architecture, ending, folder):
        self.architecture = architecture
        model = getattr(keras.applications, architecture)(weights=None, classifier_activation=None)
        rng = np.random.default_rng(1)
        for variable in model.weights:
            if variable.name in RANGES:
                variable.assign(rng.uniform(*RANGES[variable.name], variable.shape))
        self.images = rng.uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
        self.logits = np.asarray(model(self.images, training=False))
        self.weights = model.get_weights()
        self.file = folder / f"model{ending}"
        save(model, self.file)
        read = WeightsFile(self.file)
        # A second model would take as long to build as the first.
        model.set_weights([np.zeros_like(value) for value in self.weights])
        self.model = model
        read.load(model)
        self.folder = folder / "checkpoint"
        self.told = convert_keras_weights.write_checkpoint(self.model, read.kind, self.folder)
        self.prefix = f"{self.folder}/model.ckpt-0"
        self.scope = keras_weights.SCOPES[architecture]
        self.reader = tf.train.load_checkpoint(self.prefix)


@pytest.fixture(scope="module")
def converted(request, keras, tmp_path_factory):
    return Converted(keras, *request.param, tmp_path_factory.mktemp("converted"))


all_networks = pytest.mark.parametrize(
    "converted", NETWORKS, indirect=True, ids=lambda each: each[0]
)
first_network = pytest.mark.parametrize(
    "converted", NETWORKS[:1], indirect=True, ids=lambda _: "50"
)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def equal(found, expected):
    """Returns whether two lists of arrays are the same, bit for bit."""
    pairs = zip(found, expected, strict=True)
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.slow
@all_networks
def test_logits_are_those_of_keras_and_slims_own_network_has_others(converted):
    described = model_file.read(converted.folder)
    config = model_file.apply(Config(), described)
    assert config.model.model == f"keras_{converted.scope}"
    assert config.model.batch_norm_epsilon == 1.001e-5
    assert (config.data.image_size, config.data.preprocessing) == (224, "inception")
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        images = tf.constant(converted.images)
        logits = build_logits(config.model, images, num_classes=1000, is_training=False)
        pool = graph.get_tensor_by_name(f"{converted.scope}/pool1/MaxPool:0")
        conv1 = graph.get_tensor_by_name(f"{converted.scope}/conv1/BiasAdd:0")
        with slim.arg_scope(resnet_v2.resnet_arg_scope(batch_norm_epsilon=1.001e-5)):
            pool_of_slim = resnet_v2.first_pool(conv1)
            logits_of_slim = None
            if converted.architecture == "ResNet50V2":
                logits_of_slim, _ = slim_resnet_v2.resnet_v2_50(
                    images, 1000, is_training=False, reuse=True
                )
        tf1.train.Saver().restore(session, converted.prefix)
        ours = session.run(logits)
        slims = session.run(logits, {pool: session.run(pool_of_slim)})
        if logits_of_slim is not None:
            own = session.run(logits_of_slim).reshape(1, 1000)
            assert distance(own, slims) < 1e-5
    assert distance(ours, converted.logits) < 1e-5
    assert distance(slims, converted.logits) > 1e-3


@pytest.mark.slow
@all_networks
def test_every_value_stays_what_it_is_in_both_directions(converted):
    names = converted.reader.get_variable_to_shape_map()
    values = {name: converted.reader.get_tensor(name) for name in names}
    contents = collections.Counter(value.tobytes() for value in values.values())
    assert contents == collections.Counter(value.tobytes() for value in converted.weights)
    assert {name.split("/")[0] for name in names} == {converted.scope}
    assert values[f"{converted.scope}/logits/weights"].shape == (1, 1, 2048, 1000)
    assert equal(converted.model.get_weights(), converted.weights)
    converted.model.set_weights([np.zeros_like(value) for value in converted.weights])
    keras_weights.assign(converted.model, converted.scope, values)
    assert equal(converted.model.get_weights(), converted.weights)


@pytest.mark.slow
@first_network
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_the_way_back_is_a_file_of_keras(converted, keras, tmp_path, monkeypatch, ending):
    target = tmp_path / f"back{ending}"
    model = converted.model
    if ending == ".weights.h5":  # A second model would take as long to build as the first.
        monkeypatch.setattr(keras_weights, "create_model", lambda *_, **__: model)
    (told,) = convert_keras_weights.write_keras(str(converted.folder), target)
    assert told == f"{target}: ResNet50V2, 272 variables of {converted.prefix}"
    if ending == ".keras":
        model = keras.saving.load_model(target)
        assert model.layers[-1].activation is keras.activations.softmax  # As Keras has it.
    else:
        model.set_weights([np.zeros_like(value) for value in converted.weights])
        model.load_weights(target)
    assert equal(model.get_weights(), converted.weights)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.slow
@first_network
def test_what_the_last_layer_makes_of_the_logits_is_the_loss(converted, keras, tmp_path):
    file, out, back = (tmp_path / name for name in ("model.keras", "out", "back.keras"))
    last = converted.model.layers[-1]
    assert WeightsFile(converted.file).activation == "linear"
    last.activation = keras.activations.sigmoid
    save(converted.model, file)
    last.activation = keras.activations.linear
    read = WeightsFile(file)
    told = convert_keras_weights.write_checkpoint(
        converted.model, read.kind, out, activation=read.activation
    )
    assert " --loss=sigmoid " in told[1]
    assert model_file.read(out).flags["loss"] == "sigmoid"
    assert model_file.read(converted.folder).flags["loss"] == "softmax"
    convert_keras_weights.write_keras(str(out), back)
    assert WeightsFile(back).activation == "sigmoid"


@pytest.mark.slow
@first_network
def test_nothing_is_left_where_a_file_can_not_be_written(converted, tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, "write", fill)
    kind = keras_weights.Kind(converted.architecture, 1000)
    with pytest.raises(OSError, match="No space left"):
        convert_keras_weights.write_checkpoint(converted.model, kind, tmp_path / "out")
    monkeypatch.setattr(converted.model, "save", fill)
    monkeypatch.setattr(keras_weights, "create_model", lambda *_, **__: converted.model)
    with pytest.raises(OSError, match="No space left"):
        convert_keras_weights.write_keras(str(converted.folder), tmp_path / "back.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_network_without_its_last_layer_is_converted_too(tmp_path, monkeypatch):
    model = keras_weights.create_model(keras_weights.Kind("ResNet50V2", None))
    kinds = []  # A second model would take as long to build as the first.
    monkeypatch.setattr(
        keras_weights, "create_model", lambda kind, **_: kinds.append(kind) or model
    )
    save(model, tmp_path / "features.weights.h5")
    read = WeightsFile(tmp_path / "features.weights.h5")
    assert read.kind == ("ResNet50V2", None)
    read.load(model)
    told = convert_keras_weights.write_checkpoint(model, read.kind, tmp_path / "out")
    assert told[0] == f"{tmp_path}/out/model.ckpt-0: ResNet50V2, 270 variables, no last layer"
    names = tf.train.load_checkpoint(f"{tmp_path}/out/model.ckpt-0").get_variable_to_shape_map()
    assert not [name for name in names if "logits" in name]
    weights = model.get_weights()
    model.set_weights([np.zeros_like(value) for value in weights])
    convert_keras_weights.write_keras(str(tmp_path / "out"), tmp_path / "back.keras")
    assert kinds == [read.kind]
    model.set_weights([np.zeros_like(value) for value in weights])
    WeightsFile(tmp_path / "back.keras").load(model)
    assert equal(model.get_weights(), weights)


@pytest.mark.slow
@pytest.mark.processes
@first_network
def test_converted_weights_are_trained_with_another_head_evaluated_and_used(converted, tmp_path):
    out, logs, data, other = (tmp_path / name for name in ("out", "logs", "data", "other"))
    done = run(
        [sys.executable, str(SCRIPT), f"--weights={converted.file}", f"--out={out}"], cwd="/"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{out}/model.ckpt-0: ResNet50V2, 272 variables, 1000 classes",
        f"  python -m trainer --init_checkpoint={out} --model=keras_resnet_v2_50 "
        "--batch_norm_epsilon=1.001e-05 --data_dir=DIR --logdir=DIR",
    ]
    named = "model.ckpt-0.data-00000-of-00001"
    assert (out / named).read_bytes() == (converted.folder / named).read_bytes()
    write_folder(data / "train", {"cat": 4, "dog": 4})
    of_data = [f"--data_dir={data}", "--image_size=64", "--batch_size=4"]
    of_run = [f"--init_checkpoint={out}", f"--logdir={logs}", "--steps=2"]
    write_folder(other / "train", {"cat": 1, "dog": 1})
    write_folder(other / "validation", {"cat": 3, "dog": 2})
    trained, evaluated = trainers(
        ["--model=keras_resnet_v2_50", *of_data, *of_run],
        ["--mode=evaluate", f"--logdir={logs}", f"--data_dir={other}"],
    )
    assert trained.returncode == 0, trained.stderr
    assert f"started from the weights of {out}/model.ckpt-0" in trained.stdout
    assert "initialized afresh: resnet_v2_50/logits (2 variables)" in trained.stdout
    assert (
        f"the weights were made with --batch_norm_epsilon=1.001e-05 ({out}/model.json); this run "
        "has --batch_norm_epsilon=1e-05"
    ) in trained.stdout
    assert "finished after 2 steps" in trained.stdout
    assert evaluated.returncode == 0, evaluated.stderr
    assert "5 images" in evaluated.stdout
