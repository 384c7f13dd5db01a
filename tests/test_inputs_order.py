"""Sharding: which example each worker reads at each step."""

import collections
import itertools
import math

import numpy as np
import pytest
from input_data import create_config, labels_of, numbered_dataset, read_evaluation, read_train

from trainer.distributed import Worker
from trainer.inputs.order import EpochOrder, global_positions

EXAMPLES = 101


def stream_of(order, size, batch_size, steps):
    """Returns what `size` workers read in so many steps, by the order alone."""
    local = np.arange(steps * batch_size)
    parts = [global_positions(local, Worker(rank, size), batch_size) for rank in range(size)]
    positions = np.stack(parts).reshape(size, steps, batch_size).transpose(1, 0, 2).ravel()
    return order.examples_at(positions)[1]


@pytest.mark.parametrize("block", [1, 4, 200])
@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (1, 8), (2, 7), (3, 5)])
def test_each_epoch_is_the_data_set_once_over_all_workers(size, batch_size, block):
    order = EpochOrder(EXAMPLES, seed=3, block=block)
    epochs = 3
    steps = -(-epochs * EXAMPLES // (size * batch_size))
    examples = stream_of(order, size, batch_size, steps)
    for epoch in range(epochs):
        part = examples[epoch * EXAMPLES : (epoch + 1) * EXAMPLES]
        assert sorted(part) == list(range(EXAMPLES))


def test_the_order_depends_on_seed_and_epoch_and_not_on_workers():
    order = EpochOrder(EXAMPLES, seed=3)
    one = stream_of(order, 1, 6, EXAMPLES)
    three = stream_of(order, 3, 2, EXAMPLES)
    assert (one == three).all()
    assert (one[:EXAMPLES] != one[EXAMPLES : 2 * EXAMPLES]).any()
    other = stream_of(EpochOrder(EXAMPLES, seed=4), 1, 6, EXAMPLES)
    assert (one[:EXAMPLES] != other[:EXAMPLES]).any()


def test_blocks_stay_together_and_move():
    order = EpochOrder(64, seed=0, block=8)
    examples = order.examples_at(np.arange(64))[1].reshape(8, 8)
    assert (np.diff(examples, axis=1) == 1).all()
    assert (examples[:, 0] != np.arange(0, 64, 8)).any()


def test_a_shuffle_is_even():
    # Where example 0 of 4 comes: 2,000 seeds, 500 +- 5 standard deviations (of 19) in each place.
    places = [
        int(np.argmin(EpochOrder(4, seed=seed).examples_at(np.arange(4))[1]))
        for seed in range(2000)
    ]
    counts = collections.Counter(places)
    assert all(abs(counts[place] - 500) < 97 for place in range(4))


@pytest.mark.parametrize(
    "size", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_the_stream_reads_what_the_order_says(size, monkeypatch):
    batch_size, steps = 7, 12
    config = create_config(batch_size=batch_size, augment="none")
    data = numbered_dataset(config, train=EXAMPLES)
    expected = stream_of(EpochOrder(EXAMPLES, seed=5), size, batch_size, steps)
    for threads in (1, 4) if size == 1 else (4,):
        monkeypatch.setattr("trainer.inputs.pipeline.count_threads", lambda _, n=threads: n)
        batches = [
            read_train(data, worker=Worker(rank, size), seed=5, steps=steps) for rank in range(size)
        ]
        read = labels_of(itertools.chain.from_iterable(zip(*batches, strict=True)))
        assert (read == expected).all()


@pytest.mark.parametrize(
    ("examples", "size", "batch_size"),
    [
        pytest.param(360, 3, 7, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, marks=pytest.mark.slow),
        (8, 2, 4),
        (33, 1, 40),
    ],
)
def test_evaluation_counts_each_example_once(examples, size, batch_size):
    data = numbered_dataset(create_config(batch_size=batch_size), validation=examples)
    parts = [read_evaluation(data, worker=Worker(rank, size)) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    counted = collections.Counter()
    largest = min(batch_size, math.ceil(examples / size))
    for batch in itertools.chain.from_iterable(parts):
        assert batch.images.shape == (largest, 8, 8, 3)
        counted.update(batch.labels[batch.weights == 1].tolist())
        assert set(batch.weights) <= {0, 1}
    assert counted == collections.Counter(range(examples))
