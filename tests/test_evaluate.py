"""An evaluation that is asked to stop, on one process that stands for several."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
from faulty_runs import MODULE, started
from processes import trainer

from trainer import exit_status
from trainer.config import Config
from trainer.distributed import Group
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs.dataset import open_dataset
from trainer.run.evaluation import Interrupted, evaluate
from trainer.run.evaluation_details import EvaluationDetails, EvaluationPredictions
from trainer.run.predictions import PredictionFiles
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
        dataclasses.replace(config.data, batch_size=batch_size),
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


def evaluated_steps(logdir):
    """The steps that have been evaluated, as often as they were."""
    path = logdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line["step"] for line in map(json.loads, lines) if "eval/top1" in line]


@pytest.mark.processes
def test_every_checkpoint_of_a_run_is_evaluated_once_beside_it(tmp_path):
    """The run keeps few checkpoints; what follows it is killed once, and started again."""
    logdir = tmp_path / "run"
    logdir.mkdir()
    steps = [*tiny.FLAGS[1:], "--model=slow:network", "--steps=32", "--checkpoint_every=4"]
    training = [*steps, "--keep_checkpoints=5", "--eval_every_epochs=0", f"--logdir={logdir}"]
    following = ["--mode=evaluate", "--follow", "--dataset=tiny:dataset", f"--logdir={logdir}"]
    slow = {"SLOW_WORKERS_MS": "600", "SLOW_WORKERS_STEPS": "1000"}
    with started([*MODULE, *following]) as first, started([*MODULE, *training], **slow) as run:
        first.wait_until(lambda: len(evaluated_steps(logdir)) >= 2, "two evaluations")
        first.process.kill()
        with started([*MODULE, *following]) as second:
            assert run.wait() == 0, run.output()
            assert second.wait() == 0, second.output()
    assert sorted(evaluated_steps(logdir)) == list(range(4, 33, 4))
    assert len(list(logdir.glob("model.ckpt-*.index"))) == 5
    assert "checkpoints of" in second.output()
    left = [path.name for path in logdir.iterdir() if "following" in path.name]
    assert len(left) <= 1  # That of the killed one, which the next start of a run removes.


@pytest.mark.processes
def test_an_evaluation_that_hangs_is_ended(run):
    flags = [*tiny.FLAGS, f"--init_checkpoint={run}/model.ckpt-60", "--dataset=slow:dataset"]
    done = trainer("--mode=evaluate", "--watchdog_seconds=3", *flags, HANG_AT_EXAMPLE="20")
    assert done.returncode == exit_status.HUNG, done.stderr
    assert "(--watchdog_seconds) in step 3, after step 2" in done.stderr
