"""Repeated augmentation: how often each example comes, where, and that it is augmented anew."""

import collections

import numpy as np
import pytest
from input_data import Numbered, create_config, labels_of, numbered_dataset, read_train

from trainer.config import Config
from trainer.distributed import Group, Worker
from trainer.errors import ConfigError
from trainer.inputs.dataset import DatasetInfo
from trainer.inputs.order import EpochOrder, dealt_positions
from trainer.inputs.source import BadImageError
from trainer.plan import Plan
from trainer.run import summary

EXAMPLES = 23
# Of a run without the flag, and before there was one.
ORDER = [6, 1, 5, 2, 4, 3, 0, 3, 5, 6, 4, 0, 2, 1]


def plain_order(count, *, seed, block=1):
    """The first `count` examples of a run without repeats."""
    return EpochOrder(EXAMPLES, seed=seed, block=block).examples_at(np.arange(count))[1]


def test_the_order_without_repeats_is_the_one_of_old():
    for order in (EpochOrder(7, seed=3), EpochOrder(7, seed=3, repeats=1)):
        times, examples = order.examples_at(np.arange(14))
        assert examples.tolist() == ORDER
        assert times.tolist() == [0] * 7 + [1] * 7


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("repeats", [2, 3, 50])
def test_each_example_comes_so_often_in_so_many_epochs(repeats, block):
    order = EpochOrder(EXAMPLES, seed=3, block=block, repeats=repeats)
    count = 2 * repeats * EXAMPLES  # Twice so many epochs.
    times, examples = order.examples_at(np.arange(count))
    expected = np.repeat(plain_order(2 * EXAMPLES, seed=3, block=block), repeats)
    np.testing.assert_array_equal(examples, expected)
    for example in range(EXAMPLES):
        assert times[examples == example].tolist() == list(range(2 * repeats))
    # Any part is that part of the whole.
    some = np.arange(7, count, 5)
    for part, whole in zip(order.examples_at(some), (times, examples), strict=True):
        np.testing.assert_array_equal(part, whole[some])
    for position in range(count - repeats):
        following = order.next_position(position)
        assert set(examples[position:following]) == {examples[position]}
        assert following % repeats == 0


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (2, 3), (3, 5), (4, 2)])
def test_a_step_has_the_same_positions_however_they_are_dealt(size, batch_size):
    step = 6
    local = np.arange(step * batch_size, (step + 1) * batch_size)
    parts = [dealt_positions(local, Worker(rank, size)) for rank in range(size)]
    count = size * batch_size
    assert sorted(np.concatenate(parts)) == list(range(step * count, (step + 1) * count))
    # Three neighbours belong to three workers, if there are so many.
    owner = {int(position): rank for rank, part in enumerate(parts) for position in part}
    for first in range(step * count, (step + 1) * count - 2):
        assert len({owner[first + offset] for offset in range(3)}) == min(3, size)


def read(size, *, repeats, steps, batch_size=4, start=0, **fields):
    """The batches of all workers: [worker][step]."""
    config = create_config(batch_size=batch_size, repeated_augmentation=repeats, **fields)
    data = numbered_dataset(config, train=EXAMPLES)
    return [
        read_train(data, worker=Worker(rank, size), seed=9, start=start, steps=steps)
        for rank in range(size)
    ]


def images_by_label(workers):
    """The images of each example, in no order."""
    found = collections.defaultdict(list)
    for batches in workers:
        for batch in batches:
            for label, image in zip(batch.labels.tolist(), batch.images, strict=True):
                found[label].append(image.tobytes())
    return found


@pytest.mark.parametrize(
    ("size", "batch_size", "steps"),
    [(1, 23, 3), pytest.param(3, 23, 1, marks=pytest.mark.slow), (2, 3, 11)],
)
def test_workers_read_each_repeat_once_and_augmented_anew(size, batch_size, steps):
    workers = read(size, repeats=3, steps=steps, batch_size=batch_size)
    count = size * batch_size * steps
    expected = collections.Counter(np.repeat(plain_order(EXAMPLES, seed=9), 3)[:count].tolist())
    found = images_by_label(workers)
    assert {label: len(images) for label, images in found.items()} == expected
    # They are those of the example's first epochs in a run without repeats.
    epochs = read(1, repeats=1, steps=3, batch_size=EXAMPLES)
    by_epoch = images_by_label(epochs)
    for label, images in found.items():
        assert len(set(images)) == len(images)
        assert set(images) == set(by_epoch[label][: len(images)])


def test_a_step_is_the_same_over_two_workers_and_over_one():
    one = read(1, repeats=3, steps=4, batch_size=6)
    two = read(2, repeats=3, steps=4, batch_size=3)
    for step in range(4):
        joined = images_by_label([[batches[step]] for batches in two])
        alone = images_by_label([[one[0][step]]])
        assert {k: sorted(v) for k, v in joined.items()} == {k: sorted(v) for k, v in alone.items()}


def test_mixing_differs_between_repeats():
    (batches,) = read(1, repeats=3, steps=3, batch_size=EXAMPLES, augment="none", mixup=0.4)
    shares = collections.defaultdict(set)
    for batch in batches:
        for label, share in zip(batch.labels.tolist(), batch.shares.tolist(), strict=True):
            shares[label].add(share)
    assert all(len(values) == 3 for values in shares.values())


@pytest.mark.slow
def test_starting_at_a_step_equals_the_straight_run_to_the_bit(monkeypatch):
    """With all that is random about an example, each on top of the others."""
    fields = {"augment": "rand", "cutmix": 1.0, "random_erasing": 0.5}
    straight = read(2, repeats=3, steps=9, batch_size=5, **fields)  # 90 of 69 in three epochs.
    monkeypatch.setattr("trainer.inputs.pipeline.count_threads", lambda _: 3)
    start = 4  # 40 of 69: within an epoch, and within the repeats of an example.
    resumed = read(2, repeats=3, start=start, steps=9 - start, batch_size=5, **fields)
    for batches, others in zip(straight, resumed, strict=True):
        for batch, other in zip(batches[start:], others, strict=True):
            for part, other_part in zip(batch, other, strict=True):
                np.testing.assert_array_equal(part, other_part)


class WithBad(Numbered):
    """A split with bad images."""

    bad = frozenset({3, 4, 11})

    def read(self, example):
        if example in self.bad:
            raise BadImageError("text")
        return super().read(example)


def test_each_repeat_of_a_bad_image_is_replaced_by_the_next_good_example():
    config = create_config(batch_size=EXAMPLES, repeated_augmentation=4, max_bad_examples=3)
    data = numbered_dataset(config, train=EXAMPLES)
    data._source.train.__class__ = WithBad
    read_labels = labels_of(read_train(data, seed=9, steps=4))
    sequence = plain_order(2 * EXAMPLES, seed=9).tolist()
    good = [
        next(example for example in sequence[place:] if example not in WithBad.bad)
        for place in range(EXAMPLES)
    ]
    assert read_labels.tolist() == np.repeat(good, 4).tolist()


@pytest.mark.parametrize(
    "others",
    [{"augment": "shift"}]
    + [
        {"augment": "none", name: 0.1}
        for name in ("color_jitter", "mixup", "cutmix", "random_erasing")
    ],
    ids=str,
)
def test_it_is_refused_where_all_repeats_would_be_the_same(others):
    assert create_config(repeated_augmentation=2, **others).repeated_augmentation == 2
    with pytest.raises(ConfigError, match=r"^--repeated_augmentation: must be 1 .*, got 2$"):
        create_config(repeated_augmentation=2, augment="none")


def test_no_repeat_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"^--repeated_augmentation: must be at least 1, got 0$"):
        create_config(repeated_augmentation=0)


@pytest.mark.parametrize(
    ("name", "examples", "repeats", "told"),
    [
        ("folder", 90, 1, "90 training, "),
        ("folder", 90, 3, "90 training (30 in an epoch, 3 times each), "),
        ("folder", 91, 3, "91 training (about 31 in an epoch, 3 times each), "),
        ("synthetic", 90, 3, "90 training, "),
    ],
)
def test_the_line_at_the_start_tells_how_many_examples_an_epoch_has(name, examples, repeats, told):
    config = Config(data=create_config(repeated_augmentation=repeats))
    info = DatasetInfo(name, examples, 5, 2, None, "")
    plan = Plan(
        total_steps=9,
        steps_per_epoch=3.0,
        global_batch_size=4,
        log_every=1,
        checkpoint_every=0,
        evaluate_every=None,
    )
    text = summary.describe_start(config, Group(Worker()), info, plan, done=0, is_complete=False)
    data, steps = text.splitlines()
    assert told in data
    assert steps.startswith(f"1 worker x {config.data.batch_size} images, ")
