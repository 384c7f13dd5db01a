"""Random erasing: what is inside and outside of the rectangle, and when there is one."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from input_data import (
    create_config,
    noise,
    numbered_dataset,
    read_evaluation,
    read_train,
    write_folder,
)

from trainer.distributed import Worker
from trainer.errors import ConfigError, UserError
from trainer.inputs import dataset
from trainer.inputs.images import random_erasing

tf1 = tf.compat.v1

SIZE = 64
PLAIN = {"augment": "standard", "color_jitter": 0.3, "mixup": 0.2, "image_size": SIZE}


def read_images(*, seed=0, steps=5, count=40, **fields):
    """Pixels, and all else that a batch has: uint8 [200, SIZE, SIZE, 3], [arrays of 200]."""
    data = numbered_dataset(create_config(batch_size=count, **{**PLAIN, **fields}), train=150)
    parts = zip(*read_train(data, seed=seed, steps=steps), strict=True)
    images, *others = (np.concatenate(part) for part in parts)
    return images, others


def rectangle_of(changed):
    """Top, left, height and width of the least box that has all of bool [SIZE, SIZE]."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@pytest.fixture(scope="module")
def plain():
    return read_images()


@pytest.fixture(scope="module")
def erased():
    return read_images(random_erasing=0.5)


@pytest.fixture(scope="module")
def all_erased():
    """Pixels where every image has a rectangle."""
    return read_images(random_erasing=1.0)[0]


def test_about_half_of_the_images_have_one_full_rectangle_and_nothing_else_changes(plain, erased):
    for before, after in zip(plain[1], erased[1], strict=True):  # Labels, shares, boxes.
        np.testing.assert_array_equal(before, after)
    changed = (plain[0] != erased[0]).any(-1)
    is_erased = changed.any((1, 2))
    # 5 standard deviations of 200 draws.
    assert abs(is_erased.mean() - 0.5) < 5 * (0.25 / 200) ** 0.5
    for mask in changed[is_erased]:
        height, width = rectangle_of(mask)[2:]
        assert mask.sum() >= height * width - 1  # Noise may be what was there: 1 of 2 ** 24.


def test_areas_aspects_and_places_keep_to_the_papers_bounds(plain, all_erased):
    rectangles = np.array([rectangle_of(m) for m in (plain[0] != all_erased).any(-1)])
    assert len(rectangles) == 200  # All of them.
    top, left, height, width = rectangles.T
    # A side is rounded to a pixel.
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * SIZE**2).all()
    assert ((height - 0.5) * (width - 0.5) <= SIZE**2 / 3).all()
    for long, short in ((height, width), (width, height)):
        assert ((long - 0.5) / (short + 0.5) <= 1 / 0.3).all()
    shares = height * width / SIZE**2
    # Uniform between 2 % and a third; the standard error is 0.0064.
    assert abs(shares.mean() - (0.02 + 1 / 3) / 2) < 0.032
    assert shares.min() < 0.05
    assert shares.max() > 0.3
    # As often high as wide, and up to three times as high.
    stretch = np.log(height / width)
    assert abs(stretch.mean()) < 5 * (math.log(1 / 0.3) ** 2 / 3 / 200) ** 0.5
    assert stretch.min() < -0.9
    assert stretch.max() > 0.9
    for start, room in ((top, SIZE - height), (left, SIZE - width)):
        places = (start / np.maximum(room, 1))[room > 5]
        assert 0.4 < places.mean() < 0.6
        assert places.min() < 0.1
        assert places.max() > 0.9


def test_the_noise_has_all_values_alike_and_is_new_for_each_image(plain, all_erased):
    images = all_erased
    masks = (plain[0] != images).any(-1)
    values = images[masks]
    assert len(values) > 100_000
    # Mean and deviation of whole numbers from 0 to 255, to 5 standard errors and more.
    assert abs(values.mean() - 127.5) < 1
    assert abs(values.std() - ((256**2 - 1) / 12) ** 0.5) < 1
    assert np.unique(values).tolist() == list(range(256))
    assert abs(np.corrcoef(values.T.astype(float)) - np.eye(3)).max() < 0.02
    starts = {image[mask][:8].tobytes() for image, mask in zip(images, masks, strict=True)}
    assert len(starts) == 200


@functools.cache
def applying(size, probability):
    """A session with the operation for images of a size, and what it is fed and gives."""
    with tf.Graph().as_default() as graph:
        fed = tf1.placeholder(tf.uint8, [size, size, 3]), tf1.placeholder(tf.float32, [7])
        result = random_erasing.apply(*fed, probability)
        return tf1.Session(graph=graph), fed, result


def apply_to(pixels, randoms, probability):
    session, fed, result = applying(len(pixels), probability)
    return session.run(result, dict(zip(fed, (pixels, randoms), strict=True)))


@pytest.mark.parametrize("size", [1, 2, 37, 224])
@pytest.mark.parametrize(
    "numbers", [(0, 0, 0, 0), (1, 0, 1, 1), (0.3, 0.8, 0.2, 0.9), (1, 1, 1, 0)]
)
def test_the_rectangle_is_numpys(numbers, size):
    area, aspect, down, across = numbers
    pixels = noise(1, size, size)
    randoms = [0.4, area, aspect, down, across, 0.5, 0.25]
    np.testing.assert_array_equal(apply_to(pixels, randoms, 0.3), pixels)
    image = apply_to(pixels, randoms, 0.5)
    share = 0.02 + (1 / 3 - 0.02) * area
    bound = min(math.log(1 / 0.3), -math.log(share))
    ratio = math.exp((2 * aspect - 1) * bound)
    # Not a pixel more or less, but where the exact side is nearly between two.
    height = min(max(1, round(size * (share * ratio) ** 0.5)), size)
    width = min(max(1, round(size * (share / ratio) ** 0.5)), size)
    top = min(int(down * (size - height + 1)), size - height)
    left = min(int(across * (size - width + 1)), size - width)
    expected = np.zeros((size, size), bool)
    expected[top : top + height, left : left + width] = True
    np.testing.assert_array_equal((image != pixels).any(-1), expected)


@pytest.mark.slow
def test_the_rectangles_are_those_of_the_seed(plain, erased):
    again, _ = read_images(random_erasing=0.5)
    np.testing.assert_array_equal(again, erased[0])
    before, _ = read_images(seed=1)
    after, _ = read_images(seed=1, random_erasing=0.5)
    masks = [(one != two).any((1, 2, 3)) for one, two in ((before, after), (plain[0], again))]
    assert (masks[0] != masks[1]).any()


def test_without_augmentation_images_are_erased_too():
    fields = {"augment": "none", "color_jitter": 0.0, "steps": 1}
    before, _ = read_images(**fields)
    after, _ = read_images(random_erasing=1.0, **fields)
    assert (before != after).any((1, 2, 3)).all()


def test_evaluations_erase_nothing():
    parts = [
        read_evaluation(numbered_dataset(create_config(random_erasing=chance), validation=6))
        for chance in (0.0, 1.0)
    ]
    for before, after in zip(*parts, strict=True):
        np.testing.assert_array_equal(before.images, after.images)


def operations(**fields):
    """The types of all operations of a training stream, also of those within functions."""
    with tf.Graph().as_default() as graph:
        numbered_dataset(create_config(**fields), train=4).build_train(Worker(), seed=0)
        functions = graph.as_graph_def().library.function
    return {node.op for function in functions for node in function.node_def}


def test_a_run_without_it_has_none_of_its_operations():
    more = operations(random_erasing=0.1) - operations()
    assert "StatelessRandomUniformFullIntV2" in more


def test_bad_images_are_replaced_and_one_too_many_ends_the_stream(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "1.png").write_bytes(b"text")
    for allowed in (1, 0):
        config = create_config(data_dir=str(tmp_path), max_bad_examples=allowed, random_erasing=0.5)
        data = dataset.open_dataset(config)
        if allowed:
            assert len(read_train(data, steps=3)) == 3
        else:
            with pytest.raises(UserError, match=r"1\.png: a bad image"):
                read_train(data, steps=3)


@pytest.mark.parametrize(("value", "rule"), [(-0.1, "at least 0.0"), (1.5, "at most 1.0")])
def test_a_wrong_probability_is_one_line(value, rule):
    with pytest.raises(ConfigError, match=f"^--random_erasing: must be {rule}, got {value}$"):
        create_config(random_erasing=value)
