"""A stream that starts at step k is the straight run from step k on."""

import numpy as np
import pytest
from input_data import create_config, numbered_dataset, read_batches, read_starts, read_train

from trainer.distributed import Worker


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for part, other_part in zip(batch, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": "standard", "color_jitter": 0.4},
        {"augment": "rand", "mixup": 0.2, "cutmix": 1.0},
        {"augment": "shift", "random_erasing": 0.5},
    ],
    ids=str,
)
@pytest.mark.slow
def test_starting_at_a_step_equals_the_straight_run_to_the_bit(fields, monkeypatch):
    data = numbered_dataset(create_config(batch_size=5, **fields), train=23)
    worker = Worker(1, 2)
    straight = read_train(data, worker=worker, seed=9, steps=9)
    monkeypatch.setattr("trainer.inputs.pipeline.count_threads", lambda _: 3)
    starts = (8, 1, 4)  # Not in the order of a run, in which what is left behind could be right.
    for start, resumed in zip(
        starts, read_starts(data, starts, worker=worker, seed=9, end=9), strict=True
    ):
        assert_same(straight[start:], resumed)


@pytest.mark.slow
def test_augmentation_differs_between_epochs_and_seeds():
    data = numbered_dataset(create_config(batch_size=4, augment="standard"), train=4)
    epochs = read_train(data, steps=2)
    other_seed = read_train(data, seed=1, steps=1)
    by_label = [dict(zip(b.labels, b.images, strict=True)) for b in [*epochs, *other_seed]]
    for label in range(4):
        assert (by_label[0][label] != by_label[1][label]).any()
        assert (by_label[0][label] != by_label[2][label]).any()


def test_a_start_in_the_middle_decodes_nothing_before_it(monkeypatch):
    monkeypatch.setattr("trainer.inputs.pipeline.count_threads", lambda _: 2)
    examples, batch_size = 100_000, 50
    data = numbered_dataset(create_config(batch_size=batch_size), train=examples)
    start = examples // 2 // batch_size
    read_batches(lambda: data.build_train(Worker(), seed=0), start=start, steps=1)
    # What is read ahead, but nothing of the 50,000 before.
    assert len(data._source.train.reads) < 1000
