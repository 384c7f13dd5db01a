"""Averages of weights against numpy, and in evaluations."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import test_update
import tiny

from trainer.distributed import Group
from trainer.graph import train_step
from trainer.graph.averages import SUFFIX
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs.dataset import open_dataset
from trainer.run.evaluation import evaluate

DECAY = 0.4


def create_config(network="network"):
    config = test_update.create_config(network=network)
    optimizer = dataclasses.replace(config.optimizer, ema_decay=DECAY)
    return dataclasses.replace(config, optimizer=optimizer)


@pytest.fixture
def run():
    """A run of the tiny network that can be poisoned."""
    created = test_update.Run(create_config("poisoned_network"))
    yield created
    created.session.close()


def averaged_names(values):
    return [name for name in values if f"{name}{SUFFIX}" in values]


def test_averages_follow_the_variables_as_slims_do(run):
    values = run.values()
    names = averaged_names(values)
    assert len(names) == 12  # With the moving statistics.
    expected = {name: values[name].astype(np.float64) for name in names}
    for name in names:
        np.testing.assert_array_equal(values[f"{name}{SUFFIX}"], values[name])
    for number in range(8):
        run.step()
        values = run.values()
        decay = min(DECAY, (1 + number) / (10 + number))
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * values[name]
            np.testing.assert_allclose(
                values[f"{name}{SUFFIX}"], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
            )
    assert decay == DECAY  # Both cases of the minimum were seen.
    assert np.max(np.abs(values["logits/weights"] - expected["logits/weights"])) > 1e-3


def test_averages_stay_where_a_step_is_not_finite(run):
    run.step()
    before = run.values()
    assert run.step(poison=math.nan).is_applied == 0
    after = run.values()
    for name in before.keys() - {"global_step"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.slow
def test_an_evaluation_reports_both_networks():
    """The averaged weights are made those of a network that is always right, or never."""
    config = create_config()
    with tf.Graph().as_default(), tf1.Session() as session:
        dataset = open_dataset(config.data)
        train = train_step.build_train_graph(config, Group(), dataset)
        graph = build_evaluation_graph(config, Group(), dataset, train.averages)
        plain = build_evaluation_graph(config, Group(), dataset)
        variables = {v.op.name: v for v in tf1.global_variables()}
        session.run(tf1.global_variables_initializer())
        for _ in range(2):  # The averages' network, then the same weights as the network itself.
            both = evaluate(session, graph, Group())
            alone = evaluate(session, plain, Group())
            assert (both.top1, both.loss) == (alone.top1, alone.loss)
            assert alone.ema_top1 is None
            swapped = evaluate_swapped(session, variables, plain)
            assert (both.ema_top1, both.ema_loss) == (swapped.top1, swapped.loss)
            assert both.count == tiny.VALIDATION_EXAMPLES
            train_some(session, train)
        assert both.ema_loss != both.loss


def evaluate_swapped(session, variables, plain):
    """The evaluation of the averages as the network's own weights, which then come back."""
    kept = session.run(variables)
    session.run(
        [
            tf1.assign(v, kept[f"{n}{SUFFIX}"])
            for n, v in variables.items()
            if f"{n}{SUFFIX}" in kept
        ]
    )
    result = evaluate(session, plain, Group())
    session.run([tf1.assign(v, kept[n]) for n, v in variables.items() if f"{n}{SUFFIX}" in kept])
    return result


def train_some(session, train):
    session.run(train.broadcast_op)
    session.run(train.stream.initializer, {train.stream.start_step: 0})
    for _ in range(3):
        session.run(train.train_op, {train.learning_rate: 0.3})
