"""Top-1 and top-5 where logits are equal or are no numbers, against numpy."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from trainer.config import Config
from trainer.distributed import Group
from trainer.graph import accuracy
from trainer.graph.evaluation import build_evaluation_graph
from trainer.graph.network import classify
from trainer.graph.train_step import build_train_graph
from trainer.inputs.dataset import Dataset, DatasetInfo
from trainer.inputs.source import Source
from trainer.modes import predict
from trainer.run.evaluation import evaluate

PRECISIONS = [
    pytest.param("float32", marks=pytest.mark.slow),
    "bfloat16",
    pytest.param("float16", marks=pytest.mark.slow),
]
CLASSES = 200


def places(logits, labels):
    with tf.Graph().as_default(), tf1.Session() as session:
        return session.run(accuracy.find_places(tf.constant(logits), tf.constant(labels, tf.int32)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_label_has_the_place_that_a_stable_sort_gives_it(precision):
    """Of 200 classes, whose logits low precision makes equal."""
    rng = np.random.default_rng(0)
    dtype = tf.as_dtype(precision).as_numpy_dtype
    logits = rng.normal(size=(500, CLASSES)).astype(dtype).astype(np.float32)
    labels = rng.integers(CLASSES, size=500)
    order = np.argsort(-logits, axis=1, kind="stable")
    found = places(logits, labels)
    np.testing.assert_array_equal(order[np.arange(500), found], labels)
    np.testing.assert_array_equal(found == 0, logits.argmax(axis=1) == labels)


def test_infinite_logits_have_places_and_those_that_are_no_numbers_have_none():
    inf, nan = math.inf, math.nan
    logits = np.float32([[1, inf, 2], [1, -inf, 2], [inf, inf, 0], [nan, nan, nan], [3, nan, 1]])
    assert places(logits, [1, 1, 1, 0, 0]).tolist() == [0, 2, 1, 3, 3]


def configure(precision, examples, classes):
    """A configuration, and data whose classes are equally frequent."""
    groups = tiny.config_groups()
    groups["model"] = dataclasses.replace(groups["model"], precision=precision)
    split = tiny.Patches(examples, seed=3)
    split.labels = np.arange(examples) % classes
    info = DatasetInfo("balanced", examples, examples, classes, None, "1")
    source = Source("balanced", split, split, classes, None, "1")
    config = Config(**groups)
    return config, Dataset(config.data, source, info)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_whose_logits_are_equal_is_right_about_one_class(precision):
    config, data = configure(precision, 40, 8)
    with tf.Graph().as_default(), tf1.Session() as session:
        evaluation = build_evaluation_graph(config, Group(), data)
        train = build_train_graph(config, Group(), data)
        session.run(tf1.global_variables_initializer())
        session.run([v.assign(tf.zeros_like(v)) for v in tf1.trainable_variables("logits")])
        result = evaluate(session, evaluation, Group())
        assert (result.count, result.top1, result.top5) == (40, 1 / 8, 5 / 8)
        session.run(train.stream.initializer, {train.stream.start_step: 0})
        top1 = [session.run((train.metrics.top1, train.stream.batch.labels)) for _ in range(5)]
        for share, labels in top1:
            assert share == np.mean(labels == 0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_that_tells_a_class_agrees_with_argmax(precision, tmp_path):
    """A random network of 200 classes: what is counted, and what is predicted of the same files."""
    config, data = configure(precision, 400, CLASSES)
    files = [tmp_path / f"{number}.png" for number in range(400)]
    for number, file in enumerate(files):
        file.write_bytes(tiny.Patches(400, seed=3).read(number))
    all_logits = []
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(1)
        evaluation = build_evaluation_graph(config, Group(), data)
        images = evaluation.stream.batch.images
        logits = classify(config, images, num_classes=CLASSES)  # Of the same variables.
        session.run(tf1.global_variables_initializer())
        session.run(evaluation.stream.initializer, {evaluation.stream.start_step: 0})
        for _ in range(evaluation.steps):
            found, seen, totals = session.run((logits, evaluation.predictions, evaluation.totals))
            classes = found.argmax(axis=1)
            np.testing.assert_array_equal(seen.classes, classes)
            order = np.argsort(-found, axis=1, kind="stable")
            assert totals[1] == np.sum(classes == seen.labels)
            assert totals[2] == np.sum(order[:, :5] == seen.labels[:, None])
            all_logits += list(found[seen.weights > 0])
        prefix = tf1.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    all_logits = np.float32(all_logits)
    low_bits = all_logits.view(np.uint32) & 0x1FFF  # float16 has none of these, bfloat16 neither.
    assert np.mean(low_bits != 0) > 0.99
    names = list(map(str, files))
    predicted = list(predict._classify(config, names, prefix, CLASSES))
    assert [name for name, _ in predicted] == names
    np.testing.assert_array_equal([logits for _, (logits, _) in predicted], all_logits)
