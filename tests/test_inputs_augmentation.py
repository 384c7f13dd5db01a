"""Random crops, colour operations and mixing, against NumPy and Pillow."""

import numpy as np
import pytest
import tensorflow as tf
from input_data import (
    Numbered,
    create_config,
    encode,
    noise,
    numbered_dataset,
    read_evaluation,
    read_train,
)
from PIL import Image, ImageEnhance, ImageOps

from trainer.graph import images as device
from trainer.inputs.images import augmentation, rand_augment
from trainer.inputs.pipeline import Batch

tf1 = tf.compat.v1


def evaluate(build):
    """The value of what `build` adds to a graph of its own."""
    with tf.Graph().as_default():
        tensor = build()
        with tf1.Session() as session:
            return session.run(tensor)


def test_random_numbers_are_uniform_and_belong_to_seed_epoch_and_example():
    examples = np.arange(20_000)
    values = augmentation.uniforms(1, examples * 0, examples, 5)
    assert values.min() >= 0
    assert values.max() < 1
    # Mean and variance of 100,000 uniform numbers, to 5 standard deviations.
    assert abs(values.mean() - 1 / 2) < 5 * (1 / 12 / 1e5) ** 0.5
    assert abs(values.var() - 1 / 12) < 5 * (1 / 180 / 1e5) ** 0.5
    assert abs(np.corrcoef(values.T) - np.eye(5)).max() < 5 / 20_000**0.5
    for other in (
        augmentation.uniforms(2, examples * 0, examples, 5),
        augmentation.uniforms(1, examples * 0 + 1, examples, 5),
        augmentation.uniforms(1, examples, examples * 0, 5),
    ):
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 5 / 1e5**0.5
    some = augmentation.uniforms(1, examples[:3] * 0, examples[7:10], 5)
    np.testing.assert_array_equal(some, values[7:10])


@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_random_crops_keep_to_area_aspect_and_image(min_area):
    count = 4000
    sizes = np.random.default_rng(0).integers(300, 400, (2, count))
    randoms = np.random.default_rng(1).random((count, augmentation.CROP_RANDOMS))
    windows = augmentation.random_crops(*sizes, randoms, min_area=min_area)
    top, left, height, width = windows.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= sizes[0]).all()
    assert (left + width <= sizes[1]).all()
    aspects = width / height
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35
    if min_area < 1:
        shares = height * width / (sizes[0] * sizes[1])
        assert shares.min() > 0.98 * min_area
        assert shares.max() > 0.95
        # Places are spread over all of the room that there is.
        room = sizes[0] - height
        assert 0.4 < (top / np.maximum(room, 1))[room > 20].mean() < 0.6


def test_crops_of_extreme_images_are_within_them():
    heights, widths = np.array([1, 1, 4000, 1]), np.array([1, 4000, 1, 3])
    randoms = np.random.default_rng(1).random((4, augmentation.CROP_RANDOMS))
    for windows in (
        augmentation.random_crops(heights, widths, randoms, min_area=0.08),
        augmentation.centre_crops(heights, widths, fraction=0.875),
    ):
        top, left, height, width = windows.T
        assert (windows[:, :2] >= 0).all()
        assert (windows[:, 2:] >= 1).all()
        assert (top + height <= heights).all()
        assert (left + width <= widths).all()


def test_evaluation_takes_the_centre():
    pixels = noise(0, 48, 64)
    data = numbered_dataset(create_config(image_size=42, batch_size=1), validation=1)
    data._source.validation.read = lambda _: encode(pixels)
    # 0.875 of 48 is 42: no pixel is changed.
    np.testing.assert_array_equal(read_evaluation(data)[0].images[0], pixels[3:45, 11:53])


def mirrored_share(fields):
    """The share of 200 training images that is mirrored; no pixel may be changed otherwise."""
    pixels = noise(0, 8, 8)
    crops = {} if "augment" in fields else {"crop_min_area": 1.0}
    data = numbered_dataset(create_config(crop_fraction=1.0, **crops, **fields), train=200)
    data._source.train.read = lambda _: encode(pixels)
    images = np.concatenate([batch.images for batch in read_train(data, steps=50)])
    is_mirrored = (images == pixels[:, ::-1]).all((1, 2, 3))
    assert (is_mirrored | (images == pixels).all((1, 2, 3))).all()
    return is_mirrored.mean()


@pytest.mark.slow
def test_half_of_the_images_are_mirrored_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(augmentation, "_ASPECT_RANGE", (1.0, 1.0))
    assert 0.35 < mirrored_share({}) < 0.65
    assert mirrored_share({"flip": False}) == 0
    assert mirrored_share({"augment": "none"}) == 0


def test_shifts_move_by_up_to_a_sixteenth_and_let_black_in():
    pixels = np.maximum(noise(0, 32, 32), 1)
    config = create_config(augment="shift", image_size=32, crop_fraction=1.0)
    data = numbered_dataset(config, train=100)
    data._source.train.read = lambda _: encode(pixels)
    padded = np.pad(pixels, [(2, 2), (2, 2), (0, 0)])
    shifts = set()
    for image in np.concatenate([batch.images for batch in read_train(data, steps=100)]):
        rows = np.flatnonzero(image.any((1, 2)))
        columns = np.flatnonzero(image.any((0, 2)))
        row = 2 - rows[0] if rows[0] else 2 + 31 - rows[-1]
        column = 2 - columns[0] if columns[0] else 2 + 31 - columns[-1]
        np.testing.assert_array_equal(image, padded[row : row + 32, column : column + 32])
        shifts.add((row, column))
    assert {row for row, _ in shifts} == {column for _, column in shifts} == set(range(5))


def test_the_greatest_random_numbers_are_below_one(monkeypatch):
    """A float64 next to 1, as one of some 33 million is, would be 1 in float32: a shift too far."""
    monkeypatch.setattr(
        augmentation,
        "uniforms",
        lambda seed, times, examples, count: np.full((len(examples), count), 1 - 2.0**-40),
    )
    pixels = noise(0, 32, 32)
    config = create_config(augment="shift", image_size=32, crop_fraction=1.0)
    data = numbered_dataset(config, train=100)
    data._source.train.read = lambda _: encode(pixels)
    for batch in read_train(data, steps=2):
        for image in batch.images:
            np.testing.assert_array_equal(image[:30, :30], pixels[2:, 2:])
            assert not image[30:].any()


PILLOW = {
    "autocontrast": (rand_augment.autocontrast, ImageOps.autocontrast),
    "equalize": (rand_augment.equalize, ImageOps.equalize),
    "posterize": (lambda x: rand_augment.posterize(x, 5), lambda x: ImageOps.posterize(x, 5)),
    "solarize": (lambda x: rand_augment.solarize(x, 179), lambda x: ImageOps.solarize(x, 179)),
    "brightness": (
        lambda x: rand_augment.brightness(x, 1.27),
        lambda x: ImageEnhance.Brightness(x).enhance(1.27),
    ),
    "contrast": (
        lambda x: rand_augment.contrast(x, 0.73),
        lambda x: ImageEnhance.Contrast(x).enhance(0.73),
    ),
    "color": (lambda x: rand_augment.color(x, 1.27), lambda x: ImageEnhance.Color(x).enhance(1.27)),
    "sharpness": (
        lambda x: rand_augment.sharpness(x, 1.27),
        lambda x: ImageEnhance.Sharpness(x).enhance(1.27),
    ),
    "rotate": (
        lambda x: rand_augment.rotate(x, 9.0),
        lambda x: x.rotate(9, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)),
    ),
    "shear": (
        lambda x: rand_augment.shear(x, 0.09, 0.0),
        lambda x: x.transform(
            x.size,
            Image.Transform.AFFINE,
            (1, 0.09, -0.09 * 16, 0, 1, 0),
            Image.Resampling.BILINEAR,
            fillcolor=(128, 128, 128),
        ),
    ),
    "translate": (
        lambda x: rand_augment.translate(x, 0.0, 0.125),
        lambda x: x.transform(
            x.size,
            Image.Transform.AFFINE,
            (1, 0, 0, 0, 1, 4),
            fillcolor=(128, 128, 128),
        ),
    ),
}


@pytest.mark.parametrize("name", PILLOW)
def test_operations_do_what_pillows_do(name):
    ours, pillows = PILLOW[name]
    rows, columns, channels = np.meshgrid(range(32), range(32), range(3), indexing="ij")
    smooth = (3 * rows + 2 * columns + 9 * channels + 20).astype(np.uint8)
    for pixels in (noise(0, 32, 32), smooth, np.full((32, 32, 3), 77, np.uint8)):
        wanted = np.asarray(pillows(Image.fromarray(pixels))).astype(int)
        got = evaluate(lambda p=pixels: ours(tf.constant(p))).astype(int)
        assert got.shape == wanted.shape
        if name in ("rotate", "shear"):
            # At the border the two disagree on what is outside.
            inner = np.abs(got - wanted)[4:-4, 4:-4]
            assert inner.max() <= 5
        else:
            assert np.abs(got - wanted).max() <= 1


@pytest.mark.slow
def test_rand_augment_uses_each_transformation():
    pixels = noise(0, 16, 16)
    with tf.Graph().as_default():
        randoms = tf1.placeholder(tf.float32, [4])
        result = rand_augment.apply(tf.constant(pixels), randoms)
        with tf1.Session() as session:
            images = [
                session.run(result, {randoms: [(number + 0.5) / 14, 0.2, 0.0, 0.0]})
                for number in range(14)
            ]
    np.testing.assert_array_equal(images[0], pixels)  # Identity, twice.
    different = {image.tobytes() for image in images}
    assert len(different) >= 13  # Noise has full contrast already: autocontrast may change nothing.


def create_batch(count, size, shares, boxes):
    images = np.stack([noise(number, size, size) for number in range(count)])
    return Batch(
        images=images,
        labels=np.arange(count, dtype=np.int32),
        weights=np.ones(count, np.float32),
        shares=np.array(shares, np.float32),
        boxes=np.array(boxes, np.int32),
    )


def test_mixed_images_and_targets_are_numpys():
    boxes = [[0, 0, 0, 0], [2, 1, 3, 5], [0, 0, 0, 0]]
    shares = [0.3, 1 - 15 / 64, 1.0]
    batch = create_batch(3, 8, shares, boxes)
    config = create_config(mixup=0.2, cutmix=1.0)
    images = evaluate(lambda: device.network_input(Batch(*map(tf.constant, batch)), config))
    targets = evaluate(lambda: device.targets(Batch(*map(tf.constant, batch)), 4))
    scaled = batch.images / 127.5 - 1
    expected = scaled.copy()
    expected[0] = 0.3 * scaled[0] + 0.7 * scaled[2]
    expected[1, 2:5, 1:6] = scaled[1, 2:5, 1:6]  # Its partner is itself: the middle of three.
    np.testing.assert_allclose(images, expected, atol=1e-6)
    np.testing.assert_allclose(targets[0], [0.3, 0, 0.7, 0], atol=1e-6)
    np.testing.assert_allclose(targets[2], [0, 0, 1, 0], atol=1e-6)


def test_cutmix_takes_the_box_from_the_partner():
    batch = create_batch(2, 8, [0.75, 1], [[4, 0, 4, 4], [0, 0, 0, 0]])
    config = create_config(cutmix=1.0)
    images = evaluate(lambda: device.network_input(Batch(*map(tf.constant, batch)), config))
    expected = batch.images.copy()
    expected[0, 4:, :4] = batch.images[1, 4:, :4]
    np.testing.assert_allclose(images, expected / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_shares_are_beta_distributed_and_boxes_have_their_area(mixup, cutmix):
    randoms = np.random.default_rng(0).random((3000, augmentation.MIXTURE_RANDOMS))
    shares, boxes = augmentation.mixtures(randoms, mixup=mixup, cutmix=cutmix, size=32)
    is_cut = (boxes[:, 2] * boxes[:, 3]) > 0
    np.testing.assert_allclose(shares[is_cut], 1 - boxes[is_cut, 2] * boxes[is_cut, 3] / 1024)
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 32).all()
    if not cutmix:
        # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
        assert abs(shares.mean() - 0.5) < 0.04
        assert abs(shares.var() - 1 / (4 * 1.4)) < 0.02
        assert not is_cut.any()
    else:
        assert is_cut.mean() > (0.35 if mixup else 0.85)
        assert is_cut.mean() < (0.55 if mixup else 1.01)


def test_without_mixing_nothing_is_mixed():
    data = numbered_dataset(create_config(), train=8)
    (batch,) = read_train(data, steps=1)
    assert (batch.shares == 1).all()
    assert (batch.boxes == 0).all()
    targets = evaluate(lambda: device.targets(Batch(*map(tf.constant, batch)), 8))
    np.testing.assert_array_equal(targets.argmax(1), batch.labels)


@pytest.mark.parametrize(
    ("preprocessing", "mean", "deviation"),
    [
        ("inception", [127.5] * 3, [127.5] * 3),
        ("imagenet", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ],
)
def test_pixels_are_scaled(preprocessing, mean, deviation):
    images = noise(0)[None]
    config = create_config(preprocessing=preprocessing)
    scaled = evaluate(lambda: device.normalize(tf.constant(images), config))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, (images - np.array(mean)) / deviation, atol=1e-5)


@pytest.mark.slow
def test_the_color_jitter_changes_pixels_within_bounds():
    plain = numbered_dataset(create_config(augment="none"), train=8)
    jittered = numbered_dataset(create_config(augment="none", color_jitter=0.2), train=8)
    assert isinstance(jittered._source.train, Numbered)
    (before,), (after,) = read_train(plain, steps=1), read_train(jittered, steps=1)
    assert (before.images != after.images).mean() > 0.5
    assert np.abs(before.images.astype(int) - after.images).max() < 150
