"""Gradients reduced over workers, against numpy; test_distributed has what two workers do."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import CommunicationConfig, Config, DataConfig, OptimizerConfig
from trainer.distributed import Group, Worker
from trainer.errors import ConfigError
from trainer.graph.reduction import adasum, fill_buckets, reduce_gradients


def adasum_of(first, second):
    """The formula for two gradients of a layer (arXiv:2006.02924), in float64."""
    first, second = np.float64(first), np.float64(second)
    product = np.vdot(first, second)
    return (1 - product / (2 * np.vdot(first, first))) * first + (
        1 - product / (2 * np.vdot(second, second))
    ) * second


def test_adasum_of_four_workers_is_that_of_pairs_of_pairs():
    rng = np.random.default_rng(3)
    widths = [5, 1, 12]
    rows = rng.normal(size=(4, sum(widths))).astype(np.float32)
    reduced = adasum(tf.constant(rows), widths, lambda values, level: values).numpy()
    for layer in np.split(np.arange(sum(widths)), np.cumsum(widths)[:-1]):
        pairs = [adasum_of(*rows[pair][:, layer]) for pair in ([0, 1], [2, 3])]
        np.testing.assert_allclose(reduced[layer], adasum_of(*pairs), rtol=1e-4, atol=1e-5)


def test_adasum_averages_what_is_equal_adds_what_is_orthogonal_and_bears_zeros():
    rows = np.float32([[2, 4, 1, 0, 0, 0], [2, 4, 0, 3, 5, 0]])
    reduced = adasum(tf.constant(rows), [2, 2, 1, 1], lambda values, level: values).numpy()
    np.testing.assert_allclose(reduced, [2, 4, 1, 3, 5, 0], rtol=1e-6)


def test_the_parts_products_are_added_up_over_the_workers():
    """The part of one worker alone would have other factors than the whole."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(2, 8)).astype(np.float32)
    other = rows[:, 4:]
    added = other @ other.T
    mine = adasum(tf.constant(rows[:, :4]), [4], lambda values, level: values + added).numpy()
    np.testing.assert_allclose(mine, adasum_of(*rows)[:4], rtol=1e-4, atol=1e-5)


def test_buckets_hold_neighbours_up_to_a_size():
    assert fill_buckets([3, 3, 3, 9, 1], 6) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert fill_buckets([3, 3], 0) == [(0, 1), (1, 2)]
    assert fill_buckets([3], 100) == [(0, 1)]


@pytest.mark.parametrize("reduction", ["average", "adasum"])
@pytest.mark.parametrize("compression", ["float16", "bfloat16"])
def test_one_worker_keeps_its_gradients(reduction, compression):
    config = Config(
        communication=CommunicationConfig(
            gradient_reduction=reduction, gradient_compression=compression
        )
    )
    gradient = tf.constant([1.0000001, 3.0])
    (reduced,) = reduce_gradients(config, Group(), [gradient], ["one"])
    np.testing.assert_array_equal(reduced, gradient)


def test_adasum_of_three_workers_is_refused():
    config = Config(communication=CommunicationConfig(gradient_reduction="adasum"))
    with pytest.raises(ConfigError, match=r"--gradient_reduction=adasum: .* power of two, got 3"):
        reduce_gradients(config, Group(Worker(size=3)), [tf.zeros([1])], ["one"])


def test_with_adasum_the_learning_rate_is_that_of_one_worker():
    groups = {"data": DataConfig(batch_size=16), "optimizer": OptimizerConfig(accumulate_steps=2)}
    assert Config(**groups).rate_batch_size(4) == 128
    adasum_config = CommunicationConfig(gradient_reduction="adasum")
    assert Config(**groups, communication=adasum_config).rate_batch_size(4) == 32
