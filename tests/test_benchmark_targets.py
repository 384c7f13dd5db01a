"""The work of a timed run: the convolutions that ran, as the executor and XLA tell them."""

import json
import re
import sys

import count_convolutions
import numpy as np
import processes
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from trainer.graph import flops
from trainer.graph.images import normalize
from trainer.graph.losses import build_losses
from trainer.graph.network import build_logits

# The tiny network has two convolutions. The images need no gradient.
CONVOLUTIONS = {
    "forward": {"forward": 2, "by_input": 0, "by_filter": 0},
    "forward_backward": {"forward": 2, "by_input": 1, "by_filter": 2},
    "train_step": {"forward": 2, "by_input": 1, "by_filter": 2},
}


def classify(counts):
    """Counts of TensorFlow's operations, oneDNN's among them, by what they compute."""
    names = {
        "forward": r"_?(MklNative|Mkl)?(Fused)?Conv2D",
        "by_input": r"_?(MklNative|Mkl)?Conv2DBackpropInput",
        "by_filter": r"_?(MklNative|Mkl)?Conv2DBackpropFilter",
    }
    return {
        kind: sum(count for name, count in counts.items() if re.fullmatch(pattern, name))
        for kind, pattern in names.items()
    }


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_run_executes_every_convolution_and_none_besides(name):
    assert classify(count_convolutions.trace(name, xla=False)) == CONVOLUTIONS[name]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_flops_are_those_of_the_convolutions_and_products_that_run(name):
    with tf.Graph().as_default():
        target = count_convolutions.build(name)
    # 3x3 kernels with stride 2, from 16x16x3 to 8x8x8 to 4x4x8, and the linear layer.
    convolutions = [2 * 9 * 3 * 8 * 8 * 8, 2 * 9 * 8 * 8 * 4 * 4]
    product = 2 * 8 * tiny.NUM_CLASSES
    forward = sum(convolutions) + product
    expected = forward if name == "forward" else 3 * forward - convolutions[0]
    assert target.flops == tiny.BATCH_SIZE * expected


def test_a_first_step_that_is_not_finite_is_a_step_like_others():
    with tf.Graph().as_default():
        target = count_convolutions.build("train_step", "tiny:poisoned_network")
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            session.run(target.begin)
            session.run(target.stream.initializer, {target.stream.start_step: 0})
            value = session.run(target.fetch, {**target.feeds, "poison:0": np.inf})
            assert not np.isfinite(value)
            assert np.isfinite(session.run(target.fetch, target.feeds))


def test_flops_of_depthwise_convolutions_and_batches_of_products():
    with tf.Graph().as_default() as graph:
        images = tf.zeros([2, 8, 8, 4])
        kernel = tf.zeros([3, 3, 4, 2])
        result = tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")
        tf.gradients(result, [images, kernel])
        assert flops.count_flops(graph.get_operations()) == 3 * 2 * (2 * 8 * 8 * 8) * 9
    with tf.Graph().as_default() as graph:
        tf.matmul(tf.zeros([5, 7, 2]), tf.zeros([5, 7, 3]), transpose_a=True)
        assert flops.count_flops(graph.get_operations()) == 2 * 5 * 2 * 3 * 7


def count_in_hlo(folder):
    """Convolutions in what XLA compiled, after all of its optimizations.

    In XLA's terms a gradient by a filter of stride 2 is a convolution with a dilated window, one by
    the input a convolution of a dilated base.
    """
    lines = [
        line
        for path in folder.glob("*cpu_after_optimizations.txt")
        for line in path.read_text().splitlines()
        if re.search(r" = \S+ convolution\(", line)
    ]
    by_filter = sum("rhs_dilate" in line for line in lines)
    by_input = sum("lhs_dilate" in line for line in lines)
    return {
        "forward": len(lines) - by_filter - by_input,
        "by_input": by_input,
        "by_filter": by_filter,
    }


XLA_CASES = [*((name, "graph") for name in CONVOLUTIONS), ("train_step", "network")]


@pytest.fixture(scope="module")
def under_xla(tmp_path_factory):
    """A folder for each pass and scope: what ran under XLA, and what XLA had compiled."""
    folder = tmp_path_factory.mktemp("xla")
    cases = [":".join(case) for case in XLA_CASES]
    program = [sys.executable, "tests/programs/count_convolutions.py"]
    done = processes.run([*program, str(folder), *cases])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(("name", "scope"), XLA_CASES)
def test_with_xla_a_run_executes_the_same_convolutions(name, scope, under_xla):
    folder = under_xla / f"{name}:{scope}"
    counts = json.loads((folder / "counts.json").read_text())
    assert counts["_XlaRun"] > 0
    assert sum(classify(counts).values()) == 0, "all are within XLA's clusters"
    assert count_in_hlo(folder) == CONVOLUTIONS[name]


def test_only_a_scalar_leaves_the_device():
    for name in CONVOLUTIONS:
        with tf.Graph().as_default():
            target = count_convolutions.build(name)
            assert target.fetch.shape == []
            assert all(placeholder.shape == [] for placeholder in target.feeds)


def run_twice(name):
    """The variables before and after two runs of a pass."""
    with tf.Graph().as_default(), tf1.Session() as session:
        target = count_convolutions.build(name)
        session.run(tf1.global_variables_initializer())
        session.run(target.stream.initializer, {target.stream.start_step: 0})
        variables = tf1.global_variables()
        before = session.run(variables)
        for _ in range(2):
            session.run(target.fetch, target.feeds)
        after = session.run(variables)
        return {
            variable.op.name: (old, new)
            for variable, old, new in zip(variables, before, after, strict=True)
        }


def test_forward_backward_updates_nothing():
    for old, new in run_twice("forward_backward").values():
        np.testing.assert_array_equal(old, new)


def test_the_train_step_updates_every_variable():
    for name, (old, new) in run_twice("train_step").items():
        is_unused = name.startswith("loss_scale/")  # float16 alone needs it.
        assert np.array_equal(old, new) == is_unused, name


def test_forward_backward_has_the_gradient_of_every_trainable_variable():
    config = count_convolutions.create_config()
    with tf.Graph().as_default(), tf1.Session() as session:
        target = count_convolutions.build("forward_backward")
        batch = target.stream.batch
        # The same variables once more.
        logits = build_logits(
            config.model,
            normalize(batch.images, config.data),
            num_classes=tiny.NUM_CLASSES,
            is_training=True,
        )
        loss = build_losses(config, logits, batch).total
        gradients = tf.gradients(loss, tf1.trainable_variables())
        session.run(tf1.global_variables_initializer())
        session.run(target.stream.initializer, {target.stream.start_step: 0})
        norm, arrays = session.run((target.fetch, gradients))
    assert norm == pytest.approx(np.sqrt(sum(np.sum(np.square(array)) for array in arrays)))
