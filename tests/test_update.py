"""Updates: several batches in one, none where something is not finite, float16's loss scale."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from trainer.config import Config, OptimizerConfig
from trainer.distributed import Group
from trainer.graph import loss_scale, train_step
from trainer.inputs.dataset import open_dataset

LEARNING_RATE = 0.1


def create_config(*, network="network", batch_size=tiny.BATCH_SIZE, accumulate_steps=1, **model):
    """The tiny configuration with some changes."""
    groups = tiny.config_groups()
    groups["model"] = dataclasses.replace(groups["model"], model=f"tiny:{network}", **model)
    groups["data"] = dataclasses.replace(groups["data"], batch_size=batch_size)
    groups["optimizer"] = OptimizerConfig(accumulate_steps=accumulate_steps)
    return Config(**groups)


@functools.cache
def build(config):
    """The trainer's own graph: it, what trains, and the initializer of its variables.

    Tests share it: what they add to it has no variables of its own.
    """
    with tf.Graph().as_default() as graph:
        tf1.set_random_seed(1)
        train = train_step.build_train_graph(config, Group(), open_dataset(config.data))
        return graph, train, tf1.global_variables_initializer()


class Run:
    """A session, which shares its graph, but no variable, with others of the configuration."""

    def __init__(self, config):
        self.graph, self.train, initializer = build(config)
        with self.graph.as_default():
            self.variables = {v.op.name: v for v in tf1.global_variables()}
        self.session = tf1.Session(graph=self.graph)
        self.session.run(initializer)
        self.session.run(self.train.broadcast_op)
        self.session.run(self.train.stream.initializer, {self.train.stream.start_step: 0})

    def load(self, name, value):
        initializer = self.variables[name].initializer
        self.session.run(initializer, {initializer.inputs[1]: value})

    def values(self):
        return self.session.run(self.variables)

    def step(self, **fed):
        names = {"request": self.train.request}
        feeds = {names.get(name, f"{name}:0"): value for name, value in fed.items()}
        feeds[self.train.learning_rate] = LEARNING_RATE
        return self.session.run([self.train.metrics, self.train.train_op], feeds)[0]


@pytest.fixture
def create_run():
    """Makes runs and closes their sessions."""
    runs = []

    def create(config):
        runs.append(Run(config))
        return runs[-1]

    yield create
    for run in runs:
        run.session.close()


@pytest.mark.slow
def test_accumulated_batches_make_the_update_of_one_large_batch(create_run):
    small = create_run(create_config(network="network_without_bn", accumulate_steps=4))
    large = create_run(create_config(network="network_without_bn", batch_size=32))
    accumulating = small.train.create_step(small.session)
    for _ in range(3):
        ours, _ = accumulating(LEARNING_RATE, 0.0)
        theirs = large.step()
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.top1 == pytest.approx(theirs.top1)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-5)
    for name, value in large.values().items():
        np.testing.assert_allclose(small.values()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_what_is_not_finite_changes_nothing(create_run, precision):
    run = create_run(create_config(network="poisoned_network", precision=precision))
    run.step()
    before = run.values()
    metrics = run.step(poison=math.nan)
    assert metrics.is_applied == 0
    assert run.train.gradient_names[metrics.nonfinite_gradient] == "conv1/weights"
    after = run.values()
    assert after.pop("global_step") == before.pop("global_step") + 1
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    metrics = run.step()
    assert metrics.is_applied == 1
    assert metrics.nonfinite_gradient == -1
    assert all(np.all(np.isfinite(value)) for value in run.values().values())


def test_a_finite_gradient_with_too_large_a_norm_is_named(create_run):
    """The sum of its squares is none of float32's numbers, so that the step is left out."""
    run = create_run(create_config(network="scaled_network"))
    metrics = run.step(scale=1e25)
    assert (metrics.is_applied, metrics.gradient_norm) == (0, math.inf)
    assert math.isfinite(metrics.loss)
    assert run.train.gradient_names[metrics.nonfinite_gradient] == "conv/weights"


@pytest.mark.slow
def test_a_batch_that_is_not_finite_spoils_its_whole_update_and_no_other(create_run):
    run = create_run(create_config(network="poisoned_network", accumulate_steps=2))
    run.session.run(run.train.accumulate_op)
    run.step()
    before = run.values()
    run.session.run(run.train.accumulate_op, {"poison:0": math.inf})
    assert run.step().is_applied == 0
    after = run.values()
    for name in before.keys() - {"global_step"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    run.session.run(run.train.accumulate_op)
    assert run.step().is_applied == 1


@pytest.mark.slow
def test_an_overflow_halves_the_scale_and_leaves_the_rest(create_run):
    run = create_run(create_config(precision="float16"))
    run.step()
    run.load("loss_scale/scale", 2.0**24)
    before = run.values()
    metrics = run.step()
    assert (metrics.is_applied, metrics.loss_scale) == (0, 2**24)
    assert math.isfinite(metrics.loss)
    after = run.values()
    assert after.pop("loss_scale/scale") == 2**23
    for name in after.keys() - {"global_step", "loss_scale/good_steps"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert after["loss_scale/good_steps"] == 0


@pytest.mark.slow
def test_the_scale_doubles_after_many_good_steps(create_run):
    run = create_run(create_config(precision="float16"))
    run.load("loss_scale/good_steps", loss_scale.GROWTH_STEPS - 2)
    scales = [run.step().loss_scale for _ in range(3)]
    assert scales == [2**15, 2**15, 2**16]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_the_scale_does_not_show_in_the_update(create_run, scale):
    scaled, exact = (create_run(create_config(precision=p)) for p in ("float16", "float32"))
    scaled.load("loss_scale/scale", scale)
    metrics = scaled.step()
    assert metrics.is_applied == 1
    assert metrics.gradient_norm == pytest.approx(exact.step().gradient_norm, rel=0.02)


@pytest.mark.slow
def test_float32_and_bfloat16_have_no_scale_to_report(create_run):
    for precision in ("float32", "bfloat16"):
        run = create_run(create_config(precision=precision))
        run.load("loss_scale/scale", 2.0**24)
        assert run.step().loss_scale == 1
        assert run.values()["loss_scale/scale"] == 2**24


@pytest.mark.slow
def test_a_request_is_told_at_its_step(create_run):
    run = create_run(create_config())
    assert [run.step().request, run.step(request=1.0).request, run.step().request] == [0, 1, 0]
