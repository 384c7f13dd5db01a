"""Evaluations: what they count, write and log, and how one ends that is asked to stop."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import processes
import pytest
import sklearn.metrics
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
from processes import trainers

from trainer import exit_status
from trainer.config import Config, PredictionConfig
from trainer.distributed import Group
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs.dataset import open_dataset
from trainer.modes import predict
from trainer.run.evaluation import Interrupted, evaluate
from trainer.run.evaluation_details import EvaluationDetails, EvaluationPredictions
from trainer.run.predictions import Prediction, PredictionFiles, open_files
from trainer.telemetry.pages.evaluation_views import NullEvaluationViews


class WithOther(Group):
    """A group in which another worker was asked to stop, after some questions."""

    def __init__(self, asked_at):
        super().__init__()
        self.asked_at = asked_at
        self.questions = 0

    def gather(self, value):
        if isinstance(value, bool):
            self.questions += 1
            return [value, self.questions >= self.asked_at]
        return [value, 2.0] if isinstance(value, float) else [value]


def run_evaluation(group, *observers, batch_size=tiny.BATCH_SIZE, eval_image_size=None, **options):
    config = Config(**tiny.config_groups())
    data = dataclasses.replace(config.data, batch_size=batch_size, eval_image_size=eval_image_size)
    config = dataclasses.replace(config, data=data)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(1)
        evaluation = build_evaluation_graph(config, Group(), open_dataset(config.data))
        session.run(tf1.global_variables_initializer())
        return evaluate(session, evaluation, group, *observers, **options)


def read_predictions(text):
    """The names, labels, best classes and logits of a table."""
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = [f"logit_{number}" for number in range(tiny.NUM_CLASSES)]
    logits = np.array([[float(row[column]) for column in columns] for row in rows], np.float32)
    names = [row["file"] for row in rows]
    labels = [int(row["label"]) for row in rows]
    return names, np.array(labels), np.array([int(row["class_1"]) for row in rows]), logits


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_each_example_is_told_and_counted_as_numpy_and_scikit_learn_do(batch_size):
    config = Config(**tiny.config_groups())
    dataset = open_dataset(config.data)
    names = dataset.info.names_of_classes
    table, lines = io.StringIO(), io.StringIO()
    written = PredictionFiles(names, table=table, lines=lines, is_labelled=True, has_logits=True)
    details = EvaluationDetails(dataset.info)
    rows = EvaluationPredictions(
        Group(),
        written,
        dataset.info.num_validation_examples,
        dataset.name_of_validation,
    )
    result = run_evaluation(Group(), details, rows, batch_size=batch_size)
    examples, labels, classes, logits = read_predictions(table.getvalue())
    assert examples == [f"patch {number}" for number in range(tiny.VALIDATION_EXAMPLES)]
    np.testing.assert_array_equal(labels, tiny.dataset(None).validation.labels)
    np.testing.assert_array_equal(classes, logits.argmax(axis=1))
    assert result.top1 == np.mean(classes == labels)
    told = details.summarize(Group())
    expected = sklearn.metrics.confusion_matrix(labels, classes, labels=range(tiny.NUM_CLASSES))
    np.testing.assert_array_equal(told["confusion"], expected)
    assert [row["count"] for row in told["classes"]] == expected.sum(axis=1).tolist()
    assert [row["right"] for row in told["classes"]] == np.diag(expected).tolist()
    assert [row["name"] for row in told["classes"]] == names
    # Naeini's and Guo's measure, bin by bin.
    probabilities = np.exp(logits.astype(float))
    confidences = (probabilities / probabilities.sum(axis=1, keepdims=True)).max(axis=1)
    error = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            gap = abs(np.mean(classes[inside] == labels[inside]) - confidences[inside].mean())
            error += inside.mean() * gap
    assert told["calibration_error"] == pytest.approx(error, abs=1e-6)
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [record["file"] for record in records] == examples
    assert [record["classes"][0]["class"] for record in records] == classes.tolist()
    np.testing.assert_array_equal(
        np.array([record["logits"] for record in records], np.float32), logits
    )


def test_logits_that_are_not_numbers_name_no_class():
    lines = io.StringIO()
    written = PredictionFiles("abc", table=None, lines=lines, is_labelled=False, has_logits=True)
    nothing = np.array([0, np.nan, np.inf], np.float32)
    written.add(Prediction("x.png", nothing, nothing))
    assert lines.getvalue() == '{"file": "x.png", "classes": [], "logits": [0.0, null, null]}\n'


def test_probabilities_of_infinite_logits_are_no_numbers_of_json():
    lines = io.StringIO()
    written = PredictionFiles("ab", table=None, lines=lines, is_labelled=False, has_logits=False)
    logits = np.array([0, np.inf], np.float32)
    written.add(Prediction("x.png", logits, np.array([0, np.nan], np.float32)))
    (first, second) = json.loads(lines.getvalue(), parse_constant=None)["classes"]
    assert "NaN" not in lines.getvalue()
    assert (first["class"], first["probability"], second["probability"]) == (1, None, 0)


def test_rows_are_passed_on_to_who_reads_a_pipe_as_they_come(tmp_path):
    os.mkfifo(tmp_path / "rows")
    config = PredictionConfig(predictions_jsonl=str(tmp_path / "rows"))
    with subprocess.Popen(["cat", tmp_path / "rows"], stdout=subprocess.PIPE) as reader:
        with open_files(config, "ab", is_labelled=True) as written:
            for number in range(2):
                written.add_unreadable(f"{number}.jpg", "is no image", label=1)
                written.flush()
                assert json.loads(reader.stdout.readline()) == {
                    "file": f"{number}.jpg",
                    "label": 1,
                    "label_name": "b",
                    "error": "is no image",
                }
        assert reader.stdout.read() == b""
    assert (tmp_path / "rows").is_fifo()


class Sizes:
    """Collects the shapes of an evaluation's images."""

    def __init__(self):
        self.shapes = set()

    def fetches(self, evaluation):
        return evaluation.stream.batch.images

    def add(self, images, name_of):
        del name_of
        self.shapes.add(images.shape)


def test_an_evaluation_has_images_of_its_own_size():
    sizes = Sizes()
    config = Config(**tiny.config_groups())
    assert run_evaluation(Group(), sizes, eval_image_size=24).count == tiny.VALIDATION_EXAMPLES
    assert sizes.shapes == {(tiny.BATCH_SIZE, 24, 24, 3)}
    assert config.data.evaluation_size == config.data.image_size == 16


def test_all_stop_when_one_is_asked():
    group = WithOther(asked_at=2)
    with pytest.raises(Interrupted):
        run_evaluation(group)
    assert group.questions == 2


@pytest.mark.slow
def test_slow_workers_are_asked_at_every_batch():
    """The other worker takes 2 s for a batch; of the 5 batches, the second is the first asked."""
    group = WithOther(asked_at=100)
    assert run_evaluation(group).count == tiny.VALIDATION_EXAMPLES
    assert group.questions == 4


class Named(NullEvaluationViews):
    """Names every example of an evaluation."""

    def __init__(self):
        self.names = []

    def fetches(self, evaluation):
        return evaluation.predictions.weights

    def add(self, values, name_of):
        self.names += [name_of(row) for row in np.flatnonzero(values)]


@pytest.mark.slow
def test_each_batch_is_shown_by_name_and_its_end_is_reported():
    """37 examples in batches of 8, to the watchdog of --mode=evaluate."""
    ended, views = [], Named()
    run_evaluation(Group(), views, after_batch=ended.append)
    assert ended == [1, 2, 3, 4, 5]
    assert views.names == [f"patch {number}" for number in range(tiny.VALIDATION_EXAMPLES)]


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.processes
def test_an_evaluation_that_hangs_is_ended(run):
    flags = [*tiny.FLAGS, f"--init_checkpoint={run}/model.ckpt-60", "--dataset=slow:dataset"]
    flags += ["--mode=evaluate", "--watchdog_seconds=3"]
    (done,) = trainers(flags, HANG_AT_EXAMPLE="20")
    assert done.returncode == exit_status.HUNG, done.stderr
    assert "(--watchdog_seconds) in step 3, after step 2" in done.stderr


@pytest.mark.processes
def test_predictions_name_classes_and_what_cannot_be_read(run, tmp_path):
    split = tiny.dataset(None).validation
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(split.read(number))
    (tmp_path / "no image.png").write_text("no image")
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    # The run's own model.json says which network, and at which size.
    flags = ["--mode=predict", f"--logdir={run}", "--crop_fraction=1"]
    target = tmp_path / "exported"
    best = shutil.copytree(run / "best", tmp_path / "best copy")
    weights = str(next(best.glob("*.index"))).removesuffix(".index")
    (tmp_path / "list").write_text("\n".join(files[:3]))
    predicted, piped, exported, evaluated = trainers(
        [*flags, str(tmp_path), f"--result_json={tmp_path}/p.json"],
        [*flags, f"@{tmp_path}/list", "--predictions_csv=-", "--batch_size=2"],
        [*tiny.FLAGS, "--mode=export", f"--logdir={run}", f"--export_dir={target}"],
        # What the best one needs lies beside it.
        [
            *("--mode=evaluate", "--dataset=tiny:dataset", f"--result_json={tmp_path}/b.json"),
            f"--init_checkpoint={weights}",
        ],
    )
    assert piped.returncode == 0, piped.stderr
    rows = list(csv.DictReader(piped.stdout.splitlines()))
    assert [row["file"] for row in rows] == files[:3]
    assert piped.stderr.splitlines()[-1] == "3 files classified"
    assert predicted.returncode == 1
    expected = f"{tmp_path}/no image.png: is not an image that can be read: neither JPEG, PNG, "
    (line,) = [line for line in predicted.stderr.splitlines() if "no image.png" in line]
    assert line.startswith(f"slim-horovod: {expected}")
    found = read_json(tmp_path / "p.json")["result"]["predictions"]
    assert [row["file"] for row in found] == files[:3]
    names = tiny.dataset(None).class_names
    likeliest = [row["classes"][0] for row in found]
    assert [row["name_1"] for row in rows] == [guess["name"] for guess in likeliest]
    for row in found:
        assert {(guess["class"], guess["name"]) for guess in row["classes"]} == set(
            enumerate(names)
        )

    assert evaluated.returncode == 0, evaluated.stderr
    assert "assumed" not in evaluated.stderr
    told = read_json(tmp_path / "b.json")["result"]
    assert sum(row["count"] for row in told["classes"]) == told["count"] == 37
    assert sum(row["right"] for row in told["classes"]) == round(told["top1"] * 37)
    assert told["images_per_sec"] > 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    best_top1 = max(line["eval/top1"] for line in lines if "eval/top1" in line)
    top1 = read_json(tmp_path / "b.json")["result"]["top1"]
    assert top1 == pytest.approx(best_top1, rel=1e-6)

    assert exported.returncode == 0, exported.stderr
    card = read_json(target / "model.json")
    assert card["class_names"] == list(names)
    checkpoint, result = card["checkpoint"], read_json(run / "result.json")["result"]
    assert (checkpoint["step"], checkpoint["workers"]) == (60, 2)
    assert checkpoint["epoch"] == pytest.approx(result["epochs"])
    assert checkpoint["evaluation"] == pytest.approx(
        {name: result["eval"][name] for name in ("top1", "loss")}, rel=1e-6
    )
    serve = tf.saved_model.load(str(target)).signatures["images"]
    probabilities = serve(images=tf.constant(split.images[:3]))["probabilities"].numpy()
    for row, expected in zip(found, probabilities, strict=True):
        shares = {guess["class"]: guess["probability"] for guess in row["classes"]}
        ours = [shares[number] for number in range(tiny.NUM_CLASSES)]
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_pipe_is_read_once_and_its_image_as_often_as_is_asked():
    """A large image that Pillow decodes is read again when its turn has come."""
    reads, writes = os.pipe()
    os.write(writes, tiny.dataset(None).validation.read(0))
    os.close(writes)
    files = predict._Files([f"/dev/fd/{reads}"])
    assert files.read(0) == files.read(0) == tiny.dataset(None).validation.read(0)
    os.close(reads)


@pytest.mark.processes
def test_what_is_evaluated_otherwise_than_by_the_run_is_not_logged_there(run, tmp_path):
    """An image that can't be read has its row all the same."""
    split, names = tiny.dataset(None).validation, tiny.dataset(None).class_names
    for number, label in enumerate(split.labels):
        folder = tmp_path / "data" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(split.read(number))
    (tmp_path / "data" / names[2] / "0 no image.png").write_text("no image")
    flags = ["--mode=evaluate", f"--logdir={run}"]
    other_data = ["--dataset=folder", f"--data_dir={tmp_path}/data", "--validation_fraction=1"]
    before = (run / "metrics.jsonl").read_text()
    of_others, larger = trainers(
        [*flags, *other_data, "--max_bad_examples=1", f"--predictions_csv={tmp_path}/rows.csv"],
        [*flags, "--dataset=tiny:dataset", "--eval_image_size=24"],
    )
    assert f"; not logged in {run}, whose run has other data" in of_others.stdout, of_others.stderr
    assert f"; not logged in {run}, whose run has images of 16 px" in larger.stdout, larger.stderr
    assert (run / "metrics.jsonl").read_text() == before
    with open(tmp_path / "rows.csv", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == tiny.VALIDATION_EXAMPLES + 1
    (bad,) = [row for row in rows if row["error"]]
    assert bad["file"].endswith("0 no image.png")
    assert (bad["label"], bad["label_name"], bad["class_1"]) == ("2", names[2], "")


@pytest.mark.processes
def test_a_run_that_may_only_be_read_is_evaluated_without_being_logged(run, tmp_path):
    theirs = shutil.copytree(run, tmp_path / "theirs")
    before = sorted((path.name, path.stat().st_size) for path in theirs.iterdir())
    theirs.chmod(0o555)
    # Not even root may write there, without what lets it.
    drops = ["--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    without = ["setpriv", *drops] if os.geteuid() == 0 else []
    flags = [*tiny.FLAGS, "--mode=evaluate", f"--logdir={theirs}"]
    done = processes.run([*without, sys.executable, "-m", "trainer", *flags])
    assert done.returncode == 0, done.stderr
    told = rf"top-1 0\.\d+ .*; not logged in {theirs}, which can't be written \(Permission denied\)"
    assert re.search(told, done.stdout), done.stdout
    assert sorted((path.name, path.stat().st_size) for path in theirs.iterdir()) == before
    done = processes.run([*without, sys.executable, "-m", "trainer", *flags, "--follow"])
    told = f"--logdir: must be writable with --follow, got {theirs}, which can't be written"
    assert (done.returncode, told in done.stderr) == (exit_status.MISTAKE, True), done.stderr
