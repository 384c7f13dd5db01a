"""--mode=export: what clients that have TensorFlow alone get, beside --mode=predict."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import tensorflow as tf
from input_data import noise
from processes import ROOT, run, trainers
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from test_export_folding import randomize
from test_inputs_in_graph import pictures

from trainer.checkpoints import model_file, restore
from trainer.config import Config, DataConfig, ModelConfig, RunConfig
from trainer.errors import UserError
from trainer.graph.network import classify
from trainer.modes import export
from trainer.modes.export import check, folding

tf1 = tf.compat.v1
NAMES = ("top left", "Käse", "line\nbreak", "odd \udce9")
SHOWN = ["top left", "Käse", "line\\nbreak", "odd \\udce9"]
STEP = 7


def config_of(folder, **run_flags):
    return Config(
        mode="export",
        model=ModelConfig(model="tiny:network"),
        data=DataConfig(image_size=16, exif_orientation="apply"),
        run=RunConfig(logdir=str(folder), **run_flags),
    )


def save_checkpoint(folder, config, num_classes, *, scale=1.0):
    """Saves a network with random values, multiplied by `scale`."""
    with tf.Graph().as_default(), tf1.Session() as session:
        size = config.data.image_size
        classify(config, tf1.placeholder(tf.uint8, [1, size, size, 3]), num_classes=num_classes)
        step = tf1.train.create_global_step()
        session.run(tf1.global_variables_initializer())
        randomize(session)
        values = [(each, scale * session.run(each)) for each in restore.network_variables()]
        restore.assign(session, values)
        session.run(step.assign(STEP))
        saver = tf1.train.Saver()
        saver.save(session, f"{folder}/model.ckpt", STEP, write_meta_graph=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run with a checkpoint, its description and an evaluation."""
    folder = tmp_path_factory.mktemp("trained") / "one"
    folder.mkdir()
    config = config_of(folder)
    save_checkpoint(folder, config, len(NAMES))
    model_file.write(folder, config, NAMES)
    lines = [
        {"step": STEP, "wall_time": 1, "eval/top1": 0.25, "eval/top5": 1.0, "eval/loss": 1.5},
        {"step": STEP + 1, "eval/top1": 0.5},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 7, "eval/top1": 0.')
    return folder


def ask(saved_model, pixels, files):
    """Returns what a process gets that imports TensorFlow alone and finds none of this project."""
    np.save(saved_model.parent / "pixels.npy", pixels)
    program = ROOT / "tests" / "programs" / "served.py"
    arguments = [str(saved_model), str(saved_model.parent / "pixels.npy"), *map(str, files)]
    done = run([sys.executable, "-I", str(program), *arguments], cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.processes
def test_a_client_with_tensorflow_alone_predicts_as_the_mode_does(trained, tmp_path):
    files = []
    for number, data in enumerate(pictures().values()):
        files.append(tmp_path / f"{number:02}.image")
        files[-1].write_bytes(data)
    other = tmp_path / "other.image"
    other.write_bytes(b"GIF89a")
    target = tmp_path / "exported"
    predicted, exported, again = trainers(
        [*("--mode=predict", f"--logdir={trained}", f"--result_json={tmp_path}/p.json")]
        + [str(file) for file in files],
        *2 * [["--mode=export", f"--logdir={trained}", f"--export_dir={target}"]],
    )
    assert predicted.returncode == 0, predicted.stderr
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == ""
    assert f"{trained}/model.ckpt-7: exported to {target}; loaded again" in exported.stdout
    assert again.returncode == 2
    assert again.stderr.splitlines() == [
        f"slim-horovod: --export_dir: must not be there yet, got {target}"
    ]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_file()) == ["exported"]

    pixels = np.stack([noise(number, 16, 16) for number in range(5)])
    found = ask(target, pixels, [*files, other])
    assert found["loaded"] == []
    assert "neither JPEG nor PNG" in found["refused"].pop(str(other))
    assert found["refused"] == {}
    assert found["assets"] == ["".join(f"{name}\n" for name in SHOWN)]
    predictions = json.loads((tmp_path / "p.json").read_text())["result"]["predictions"]
    assert [row["file"] for row in predictions] == [str(file) for file in files]
    for number, row in enumerate(predictions):
        best = [guess["class"] for guess in row["classes"]]
        expected = [guess["probability"] for guess in row["classes"]]
        for outputs in (
            {name: values[0] for name, values in found["alone"][number].items()},
            {name: values[number] for name, values in found["together"].items()},
        ):
            assert outputs["classes"] == best[0]
            assert outputs["names"] == SHOWN[best[0]]
            assert outputs["top_classes"] == best
            assert outputs["top_names"] == [SHOWN[label] for label in best]
            np.testing.assert_allclose(outputs["top_probabilities"], expected, atol=1e-5)
            np.testing.assert_allclose(
                [outputs["probabilities"][label] for label in best], expected, atol=1e-5
            )
    logits = logits_of(config_of(trained), pixels, f"{trained}/model.ckpt-7")
    np.testing.assert_allclose(found["images"]["logits"], logits, atol=1e-5)
    assert found["images"]["classes"] == logits.argmax(axis=1).tolist()

    card = json.loads((target / "model.json").read_text())
    assert card["class_names"] == list(NAMES)
    assert (card["model"], card["image_size"], card["resize"]) == ("tiny:network", 16, "antialias")
    assert card["checkpoint"]["name"] == "model.ckpt-7"
    assert (card["checkpoint"]["run"], card["checkpoint"]["step"]) == ("one", STEP)
    assert card["checkpoint"]["evaluation"] == {"top1": 0.25, "top5": 1.0, "loss": 1.5}
    assert card["export"]["folded_batch_norms"] == 2
    assert card["export"]["precision"] == "float32"
    assert card["versions"]["tensorflow"] == tf.__version__
    # What describes a run's checkpoint describes it, too.
    described = model_file.read(target)
    assert described.class_names == NAMES
    assert model_file.apply(Config(), described).data.image_size == 16


def logits_of(config, pixels, prefix):
    """The logits of a checkpoint's own network."""
    with tf.Graph().as_default(), tf1.Session() as session:
        logits = classify(config, tf.constant(pixels), num_classes=len(NAMES))
        restore.restore_weights(session, prefix, restore.network_variables())
        return session.run(logits)


@pytest.fixture
def unchecked(monkeypatch):
    """Exports without the process that loads them again."""
    monkeypatch.setattr(check, "compare", lambda *_: 0.0)


@pytest.mark.processes
def test_what_answers_otherwise_is_not_left(trained, tmp_path, monkeypatch):
    combine = folding._combine

    def combine_wrongly(*arguments):
        kernel, bias = combine(*arguments)
        return kernel, bias + 0.1

    monkeypatch.setattr(folding, "_combine", combine_wrongly)
    with pytest.raises(UserError, match=r"^--export_dir: not written: the signature images, load"):
        export.run(config_of(trained, export_dir=str(tmp_path / "exported")))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_has_diverged_is_refused(tmp_path):
    """Runtimes do not agree about the order of logits that are not a number."""
    config = config_of(tmp_path, export_dir=str(tmp_path / "exported"))
    save_checkpoint(tmp_path, config, len(NAMES), scale=np.nan)
    model_file.write(tmp_path, config, NAMES)
    with pytest.raises(UserError, match=r"/model\.ckpt-7: its logits are no finite numbers"):
        export.run(config)
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_low_precision_halves_the_weights_and_answers_nearly_alike(trained, tmp_path):
    config = config_of(trained, export_dir=str(tmp_path / "low"), export_precision="bfloat16")
    assert export.run(config) == 0
    card = json.loads((tmp_path / "low" / "model.json").read_text())
    assert card["export"]["precision"] == "bfloat16"
    assert 0 < card["export"]["largest_difference"] < 0.02
    saved = SavedModel.FromString((tmp_path / "low" / "saved_model.pb").read_bytes())
    (meta,) = saved.meta_graphs
    kernels = [node for node in meta.graph_def.node if node.name.endswith("/folded_kernel")]
    assert [node.attr["dtype"].type for node in kernels] == 2 * [tf.bfloat16.as_datatype_enum]


@pytest.mark.usefixtures("unchecked")
def test_what_is_assumed_and_names_that_are_missing_are_told(trained, tmp_path, capsys):
    for name in ("model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / name).write_bytes((trained / name).read_bytes())
    config = config_of(tmp_path / "bare", export_dir=str(tmp_path / "first"))
    config = dataclasses.replace(config, given=("model", "image_size"))
    assert export.run(config) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no model.json; assumed are --batch_norm_epsilon=1e-05 --resize=antialias " in line
    assert "--preprocessing=inception" in line
    assert json.loads((tmp_path / "first" / "model.json").read_text())["class_names"] == [
        *("0", "1", "2", "3")
    ]
    model_file.write(tmp_path / "bare", config, NAMES[:2])
    model = dataclasses.replace(config.model, precision="bfloat16")
    config = config_of(tmp_path / "bare", export_dir=str(tmp_path / "second"))
    assert export.run(dataclasses.replace(config, model=model)) == 0
    assert capsys.readouterr().err.splitlines() == [
        "slim-horovod: --precision=bfloat16 is for training and evaluation; exported is "
        "--export_precision=float32",
        "slim-horovod: the network has 4 classes and 2 names: taken are numbers for the others",
    ]
    labels = (tmp_path / "second" / "assets" / "labels.txt").read_text()
    assert labels.splitlines() == ["top left", "Käse", "2", "3"]


@pytest.mark.usefixtures("unchecked")
def test_what_can_not_be_written_is_one_line(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--export_dir: must be writable"):
        export.run(config_of(trained, export_dir=str(tmp_path / "file" / "exported")))
    with pytest.raises(UserError, match="--export_dir: must be given"):
        export.run(config_of(trained))
