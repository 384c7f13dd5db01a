"""--export_format: what LiteRT and ONNX Runtime predict, and the page's own examples."""

import dataclasses
import importlib.util
import json
import re
import sys

import numpy as np
import onnx
import pytest
import tensorflow as tf
from input_data import encode, noise
from packaging.requirements import Requirement
from PIL import Image
from processes import ROOT, run, trainers
from test_export import NAMES, SHOWN, config_of, logits_of, save_checkpoint
from test_inputs_orientation import write_turned

from models import resnet_v2
from models.slim_compat import slim
from trainer.checkpoints import model_file
from trainer.errors import ConfigError, UserError
from trainer.modes import export
from trainer.modes.export import formats

PAGE = ROOT / "docs" / "serving.md"
FOLDERS = {"saved_model": "flowers/1", "tflite": "flowers-lite", "onnx": "flowers-onnx"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder as the page has it, with networks in all formats, and what predict says of a.jpg."""
    root = tmp_path_factory.mktemp("served")
    run_folder = root / "runs" / "one"
    run_folder.mkdir(parents=True)
    config = config_of(run_folder)
    # As what was trained on shards of others; a.jpg would lie on its side.
    data = dataclasses.replace(config.data, exif_orientation="ignore")
    config = dataclasses.replace(config, data=data)
    save_checkpoint(run_folder, config, len(NAMES))
    model_file.write(run_folder, config, NAMES)
    picture = Image.fromarray(noise(1, 40, 50).repeat(3, 0).repeat(3, 1))
    (root / "a.jpg").write_bytes(write_turned(picture, "JPEG", 6))
    (root / "b.png").write_bytes(encode(noise(2, 30, 30)))
    target, of_run = root / "exported", f"--logdir={run_folder}"
    (target / "flowers").mkdir(parents=True)
    predicted, *exported = trainers(
        ["--mode=predict", of_run, f"--result_json={root}/p.json", f"{root}/a.jpg"],
        *(
            ["--mode=export", of_run, f"--export_format={name}", f"--export_dir={target}/{folder}"]
            for name, folder in FOLDERS.items()
        ),
    )
    assert predicted.returncode == 0, predicted.stderr
    for done, name in zip(exported, FOLDERS, strict=True):
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert f"by {formats.FORMATS[name].runtime} alone" in done.stdout
    return root


@pytest.mark.processes
@pytest.mark.parametrize(
    ("folder", "file", "has_names"),
    [("flowers-lite", "model.tflite", False), ("flowers-onnx", "model.onnx", True)],
)
def test_a_client_with_a_runtime_alone_predicts_as_the_checkpoint(
    served, tmp_path, folder, file, has_names
):
    exported = served / "exported" / folder
    assert sorted(path.name for path in exported.iterdir()) == ["labels.txt", "model.json", file]
    pixels = np.stack([noise(number, 16, 16) for number in range(20)])
    np.save(tmp_path / "pixels.npy", pixels)
    program = ROOT / "tests" / "programs" / "served_elsewhere.py"
    command = [sys.executable, "-I", str(program), str(exported / file), f"{tmp_path}/pixels.npy"]
    done = run(command, cwd="/")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    predictions = found["all"]
    logits = logits_of(config_of(served), pixels, f"{served}/runs/one/model.ckpt-7")
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_allclose(predictions["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(predictions["probabilities"], shares, atol=1e-5)
    assert predictions["classes"] == order[:, 0].tolist()
    assert predictions["top_classes"] == order.tolist()
    np.testing.assert_allclose(
        predictions["top_probabilities"], np.take_along_axis(shares, order, axis=1), atol=1e-5
    )
    if has_names:
        assert predictions["names"] == [SHOWN[label] for label in order[:, 0]]
        assert predictions["top_names"] == [[SHOWN[label] for label in row] for row in order]
    assert ("names" in predictions) == has_names
    np.testing.assert_allclose(found["first"]["logits"], logits[:1], atol=1e-5)
    assert (exported / "labels.txt").read_text().splitlines() == SHOWN
    card = json.loads((exported / "model.json").read_text())
    assert card["class_names"] == list(NAMES)
    assert list(card["export"]["signatures"]) == ["images"]
    assert card["export"]["largest_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.processes
def test_the_examples_of_the_page_predict_as_the_mode_does(served):
    """As printed, each in a process of its own: TensorFlow, LiteRT and ONNX Runtime."""
    (predicted,) = json.loads((served / "p.json").read_text())["result"]["predictions"]
    expected = [(SHOWN[each["class"]], each["probability"]) for each in predicted["classes"]]
    text = PAGE.read_text(encoding="utf-8")
    pixels_of, litert, onnx = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    (tensorflow,) = (block for block in indented if "import tensorflow as tf" in block)
    tensorflow = re.sub("^    ", "", tensorflow, flags=re.MULTILINE)
    names = {}
    exec(pixels_of, names)  # noqa: S102
    with Image.open(served / "a.jpg") as picture:
        stored = picture.convert("RGB")
    for flag, upright in (("ignore", stored), ("apply", stored.rotate(-90, expand=True))):
        card = {"exif_orientation": flag, "crop_fraction": 0.5, "image_size": 60}
        side, (left, top) = 60, ((length - 60) // 2 for length in upright.size)
        centre = np.asarray(upright)[top : top + side, left : left + side]
        np.testing.assert_array_equal(names["pixels_of"](served / "a.jpg", card), [centre])
    for code in (tensorflow, pixels_of + litert, pixels_of + onnx):
        done = run([sys.executable, "-I", "-c", code], cwd=served)
        assert done.returncode == 0, done.stderr
        lines = re.findall(r"^(.+) (\d\.\d{4})$", done.stdout, re.MULTILINE)
        names, shares = zip(*lines[: len(expected)], strict=True)
        assert list(names) == [name for name, _ in expected]
        np.testing.assert_allclose(
            [float(share) for share in shares], [share for _, share in expected], atol=0.01
        )


def test_what_is_missing_is_told_with_the_command(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "tf2onnx" else find_spec(name, *more),
    )
    config = config_of(tmp_path, export_dir=str(tmp_path / "out"), export_format="onnx")
    with pytest.raises(UserError) as caught:
        export.run(config)
    assert str(caught.value) == (
        "--export_format: onnx needs tf2onnx; to install what it needs: "
        "pip install onnx onnxruntime tf2onnx"
    )


def test_the_extra_has_what_the_formats_need():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    extra = re.search(r'"export": (\[.*?\])', text, re.DOTALL).group(1)
    named = {Requirement(line).name for line in json.loads(extra.replace(",\n        ]", "]"))}
    needed = {name for each in formats.FORMATS.values() for name in each.packages.values()}
    assert named == needed


def test_a_type_that_a_format_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="float32 or float16 with --export_format=tflite, got 'b"):
        config_of(tmp_path, export_format="tflite", export_precision="bfloat16")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_weights_in_half_the_room_answer_nearly_alike(served, tmp_path, name):
    config = config_of(
        served / "runs" / "one",
        export_dir=str(tmp_path / "half"),
        export_format=name,
        export_precision="float16",
    )
    assert export.run(config) == 0
    card = json.loads((tmp_path / "half" / "model.json").read_text())
    assert 0 < card["export"]["largest_difference"] < 0.005


def with_pool_of_keras(images, num_classes, is_training):
    """A thin residual network with Keras' first pool."""
    blocks = [resnet_v2.resnet_v2_block("block1", base_depth=4, num_units=2, stride=2)]
    with slim.arg_scope([resnet_v2.first_pool], pads_with_zeros=True):
        return resnet_v2.resnet_v2(images, blocks, num_classes, is_training=is_training)


@pytest.mark.parametrize("name", ["saved_model", "tflite", "onnx"])
@pytest.mark.slow
def test_a_network_with_the_pool_of_keras_answers_alike(tmp_path, name):
    """An export is compared with the checkpoint's own network, and refused where it differs."""
    config = config_of(tmp_path, export_format=name, export_dir=str(tmp_path / "out"))
    model = dataclasses.replace(config.model, model="test_export_formats:with_pool_of_keras")
    data = dataclasses.replace(config.data, image_size=33)
    config = dataclasses.replace(config, model=model, data=data)
    save_checkpoint(tmp_path, config, len(NAMES))
    model_file.write(tmp_path, config, NAMES)
    assert export.run(config) == 0
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["export"]["folded_batch_norms"] == 6
    assert card["export"]["largest_difference"] < 1e-5
    if name == "onnx":  # ONNX Runtime 1.23 would take the zeros for a padding of the pool.
        nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
        makers = {output: node.op_type for node in nodes for output in node.output}
        pools = [node for node in nodes if node.op_type == "MaxPool"]
        assert "Pad" in makers.values()
        assert "Pad" not in {makers[node.input[0]] for node in pools}


def unusual(images, num_classes, is_training):
    """A network with an operation that neither LiteRT nor ONNX has."""
    del is_training
    net = tf.math.bessel_i0e(tf.reduce_mean(images, [1, 2]))
    return slim.fully_connected(net, num_classes, activation_fn=None, scope="logits"), {}


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_an_operation_that_a_format_lacks_is_one_line(tmp_path, name):
    config = config_of(tmp_path, export_format=name, export_dir=str(tmp_path / "out"))
    model = dataclasses.replace(config.model, model="test_export_formats:unusual")
    config = dataclasses.replace(config, model=model)
    save_checkpoint(tmp_path, config, len(NAMES))
    model_file.write(tmp_path, config, NAMES)
    with pytest.raises(UserError) as caught:
        export.run(config)
    assert re.match(
        r"--model: test_export_formats:unusual can't be exported: .*Bessel", str(caught.value)
    )
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
