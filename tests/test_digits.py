"""scripts/prepare_digits.py: real images, split 1,437 / 360."""

import collections
import io

import numpy as np
import prepare_digits
import pytest
from input_data import create_config, read_evaluation, read_train
from PIL import Image

from trainer.distributed import Worker
from trainer.inputs import dataset

pytestmark = pytest.mark.slow


def load_digits():
    from sklearn import datasets  # Which takes seconds.

    return datasets.load_digits()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    prepare_digits.prepare(str(folder))
    return folder


def open_digits(folder, **fields):
    config = create_config(
        data_dir=str(folder), augment="none", crop_fraction=1.0, batch_size=7, **fields
    )
    return dataset.open_dataset(config)


def test_the_split_is_stratified_and_counts_360(digits):
    data = open_digits(digits)
    assert data.info[:4] == ("tfrecord", 1437, 360, 10)
    assert data.info.class_names == tuple("0123456789")
    counts = collections.Counter(load_digits().target.tolist())
    held_out = np.bincount(data._source.validation.labels)
    assert all(abs(held_out[digit] - count * 0.2) < 1 for digit, count in counts.items())


def test_evaluation_on_three_workers_counts_each_digit_once_with_its_pixels(digits):
    data = open_digits(digits)
    images = load_digits()
    wanted = {
        (int(label), (16 * pixels * 255 / 256).round().astype(np.uint8).tobytes())
        for pixels, label in zip(images.images, images.target, strict=True)
    }
    seen = collections.Counter()
    for rank in range(3):
        for batch in read_evaluation(data, worker=Worker(rank, 3)):
            for image, label, weight in zip(batch.images, batch.labels, batch.weights, strict=True):
                assert (image[..., 0] == image[..., 2]).all()
                seen[int(label), image[..., 0].tobytes()] += int(weight)
    seen = +seen  # Without padding.
    assert set(seen) <= wanted
    assert seen == stored(data._source.validation)
    assert seen.total() == 360


def stored(split):
    """Counts how often each pair of label and pixels is in a split, by Pillow."""
    images = (Image.open(io.BytesIO(split.read(number))) for number in range(len(split.labels)))
    pixels = (np.asarray(image.convert("L")).tobytes() for image in images)
    return collections.Counter(zip(map(int, split.labels), pixels, strict=True))


def test_an_epoch_of_two_workers_has_every_training_digit_once(digits):
    data = open_digits(digits)
    steps = -(-1437 // 14)
    parts = [read_train(data, worker=Worker(rank, 2), steps=steps) for rank in range(2)]
    seen = [
        (int(label), image[..., 0].tobytes())
        for pair in zip(*parts, strict=True)
        for batch in pair
        for label, image in zip(batch.labels, batch.images, strict=True)
    ]
    assert collections.Counter(seen[:1437]) == stored(data._source.train)


def test_again_it_is_done_at_once(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*") if path.is_file()}
    prepare_digits.prepare(str(digits))
    after = {path: path.stat().st_mtime_ns for path in digits.rglob("*") if path.is_file()}
    before.pop(digits / ".lock")
    after.pop(digits / ".lock")
    assert after == before
