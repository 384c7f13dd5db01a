"""Images that become smaller: as in Pillow, also from JPEGs that are not decoded in full."""

import io

import numpy as np
import pytest
import tensorflow as tf
from input_data import create_config, encode, read_evaluation
from PIL import Image

from trainer.inputs import dataset
from trainer.inputs.conversion import convert
from trainer.inputs.images import augmentation, encoded, graph_decoders
from trainer.inputs.images.reduction import Filter, find_parts

JPEG = 0


def photograph(seed, height, width, *, grain=6, pebbles=True):
    """Pixels with detail of all sizes: uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    total = np.full((height, width, 3), 100.0)
    for columns, strength in ((8, 60), (32, 40), (128, 20)):
        coarse = random.normal(0, strength, (3, max(2, height * columns // width), columns))
        for channel in range(3):
            layer = Image.fromarray(coarse[channel].astype(np.float32))
            total[..., channel] += layer.resize((width, height), Image.Resampling.BICUBIC)
    if pebbles:
        spots = Image.fromarray(np.float32(120 * (random.random((height // 7, width // 7)) > 0.7)))
        total += np.asarray(spots.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    total += random.normal(0, grain, (height, width, 1))
    return np.clip(total, 0, 255).astype(np.uint8)


def psnr(first, second):
    """Peak signal-to-noise ratio of pixels in 0 to 255, dB."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def read_one(data, **fields):
    """The network's input of one encoded image: uint8 [image_size, image_size, 3]."""

    class Split:
        labels = np.zeros(1, np.int64)

        def read(self, example):
            return data

        def where(self, example):
            return "x"

    source = dataset.Source("x", None, Split(), None, None, "")
    info = dataset.DatasetInfo("x", 0, 1, 1, None, "")
    config = create_config(batch_size=1, **fields)
    (batch,) = read_evaluation(dataset.Dataset(config, source, info))
    return batch.images[0]


def by_pillow(data, fraction, size, resample=Image.Resampling.BILINEAR):
    """The same window of the decoded image, resized by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        ((top, left, side, _),) = augmentation.centre_crops(
            np.array([height]), np.array([width]), fraction=fraction
        ).tolist()
        window = image.crop((left, top, left + side, top + side))
        return np.asarray(window.resize((size, size), resample))


@pytest.mark.parametrize(
    ("height", "width", "size", "fraction", "ratio"),
    [
        (1500, 2000, 64, 1.0, 8),
        pytest.param(1501, 1999, 64, 0.5, 4, marks=pytest.mark.slow),
        pytest.param(1203, 1605, 112, 0.875, 4, marks=pytest.mark.slow),
        pytest.param(1203, 1605, 224, 0.875, 2, marks=pytest.mark.slow),
        pytest.param(375, 500, 224, 1.0, 1, marks=pytest.mark.slow),
        (333, 500, 160, 0.875, 1),
        (100, 120, 128, 0.875, 1),  # It becomes larger.
    ],
)
def test_an_image_becomes_smaller_as_in_pillow(height, width, size, fraction, ratio):
    data = encode(photograph(height, height, width), "JPEG", quality=85)
    header = encoded.read_header(data)
    config = create_config(image_size=size)
    windows = augmentation.centre_crops(np.array([height]), np.array([width]), fraction=fraction)
    (decoder,) = find_parts([header], windows, config).decoders
    assert graph_decoders.split(decoder) == (JPEG, ratio)
    ours = read_one(data, image_size=size, crop_fraction=fraction)
    assert psnr(ours, by_pillow(data, fraction, size)) > 40


def test_without_antialiasing_the_same_picture_is_far_off():
    data = encode(photograph(0, 1203, 1605), "JPEG", quality=85)
    ours = read_one(data, image_size=64, resize="bilinear")
    assert psnr(ours, by_pillow(data, 0.875, 64)) < 30


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_other_formats_become_smaller_likewise(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(photograph(0, 301, 402), image_format, **options)
    ours = read_one(data, image_size=48)
    assert np.abs(ours.astype(int) - by_pillow(data, 0.875, 48)).max() <= 1


def test_bilinear_takes_the_pixels_between_four_neighbours_of_the_window():
    data = encode(photograph(0, 375, 500), "JPEG", quality=85)
    window = tf.io.decode_and_crop_jpeg(data, [23, 86, 328, 328], channels=3)
    expected = tf.cast(tf.image.resize(window, [96, 96]) + 0.5, tf.uint8)
    ours = read_one(data, image_size=96, resize="bilinear")
    np.testing.assert_array_equal(ours, expected)


def test_a_window_is_decoded_at_one_and_a_half_times_the_networks_size_at_least():
    random = np.random.default_rng(0)
    config = create_config(image_size=10)
    for _ in range(500):
        height, width = random.integers(4, 400, 2).tolist()
        header = encoded.ImageHeader(JPEG, height, width)
        window_size = [random.integers(1, height + 1), random.integers(1, width + 1)]
        start = [random.integers(height - window_size[0] + 1)]
        start += [random.integers(width - window_size[1] + 1)]
        window = np.array([*start, *window_size], np.int32)
        parts = find_parts([header], window[None], config)
        _, ratio = graph_decoders.split(int(parts.decoders[0]))
        shorter = min(window_size)
        assert ratio == 1 or shorter / ratio >= 15
        assert ratio == 8 or shorter / (2 * ratio) < 15
        part, crop = parts.windows[0], parts.crops[0]
        # The part is within the reduced image, whose size is rounded up, and the crop in the part.
        assert (part[:2] >= 0).all()
        assert (part[:2] + part[2:] <= np.ceil(np.array([height, width]) / ratio)).all()
        assert (crop[:2] >= 0).all()
        assert (crop[:2] < 1).all()
        np.testing.assert_allclose((part[:2] + crop[:2]) * ratio, start, atol=1e-3)
        np.testing.assert_allclose(crop[2:] * ratio, window_size, atol=1e-3)
        assert (crop[:2] + crop[2:] <= part[2:] + 1e-4).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (50, 70, Filter.BILINEAR),
        (100, 100, Filter.BILINEAR),
        (120, 120, Filter.BILINEAR),
        (121, 100, Filter.AREA),
        (150, 199, Filter.AREA),
        (150, 200, Filter.TRIANGLE),
        (99, 130, Filter.TRIANGLE),  # Means of areas would not be smooth where it becomes larger.
        (290, 290, Filter.TRIANGLE),
        (1000, 1000, Filter.TRIANGLE),  # Also where it is reduced by the decoder.
    ],
)
def test_the_filter_depends_on_how_much_the_sides_shrink(height, width, expected):
    header = encoded.ImageHeader(JPEG, height, width)
    window = np.array([[0, 0, height, width]], np.int32)
    parts = find_parts([header], window, create_config(image_size=100))
    assert parts.filters.tolist() == [expected]


def test_only_jpegs_are_reduced_and_only_for_antialiasing():
    window = np.array([[0, 0, 1000, 1000]], np.int32)
    for place, row in enumerate(encoded.FORMATS):
        if row.decode is None:  # The graph gets the pixels of such an image.
            continue
        header = encoded.ImageHeader(place, 1000, 1000)
        for method in ("antialias", "bilinear"):
            parts = find_parts([header], window, create_config(resize=method))
            _, ratio = graph_decoders.split(int(parts.decoders[0]))
            assert (ratio > 1) == (row.name == "JPEG" and method == "antialias")
    raw = encoded.ImageHeader(encoded.RAW, 1000, 1000)
    assert find_parts([raw], window, create_config()).decoders.tolist() == [encoded.RAW]


@pytest.mark.parametrize(("size", "is_told"), [(16, True), (32, False)])
def test_images_for_whose_decoding_steps_will_wait_are_told(tmp_path, size, is_told):
    folder = tmp_path / "images"
    for number, side in enumerate((20, 128, 150)):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        data = encode(photograph(number, side, side), "JPEG")
        (folder / "a" / f"{number}.jpg").write_bytes(data)
    (folder / "a" / "bad.jpg").write_bytes(b"no image")
    opened = dataset.open_dataset(create_config(data_dir=str(folder), image_size=size))
    lines = opened.describe_sizes()
    assert lines == (
        (
            "the median image has 128 x 128 pixels, 64 times the network's input, and steps may "
            f"wait for the decoder: scripts/make_tfrecords.py --images={folder} --out=DIR "
            "--shorter_side=37 makes images that are read quickly",
        )
        if is_told
        else ()
    )
    convert.convert(str(folder), str(tmp_path / "shards"), max_bad=1)
    config = create_config(data_dir=str(tmp_path / "shards"), image_size=size)
    of_shards = dataset.open_dataset(config).describe_sizes()
    where = ", where FOLDER has them as files in train/<class> and so on"
    assert of_shards == tuple(line.replace(str(folder), "FOLDER") + where for line in lines)
