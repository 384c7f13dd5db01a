"""The operations of an exported network before its first layer: what Python finds in evaluation."""

import contextlib
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from input_data import create_config, encode, noise, read_evaluation
from PIL import Image

from trainer.inputs import dataset
from trainer.inputs.images import augmentation, by_pillow, encoded, graph_headers, graph_parts
from trainer.inputs.images.decoder import Decoder
from trainer.inputs.images.encoded import ImageHeader
from trainer.inputs.images.graph_headers import GraphHeader
from trainer.inputs.images.reduction import find_parts
from trainer.inputs.source import BadImageError

tf1 = tf.compat.v1
JPEG, PNG = 0, 1
TAG = 0x0112


def test_the_formats_are_those_of_the_table():
    names = [encoded.FORMATS[place].name for place in (graph_headers.JPEG, graph_headers.PNG)]
    assert names == ["JPEG", "PNG"]


@pytest.mark.parametrize("resize", ["antialias", "bilinear"])
@pytest.mark.parametrize(("size", "fraction"), [(8, 1.0), (224, 0.875), (57, 0.31)])
def test_the_parts_of_many_sizes_are_those_of_evaluation(size, fraction, resize):
    random = np.random.default_rng(size)
    sides = np.exp(random.uniform(0, np.log(6000), (20_000, 2))).astype(np.int64)
    sides[:500] = np.arange(1, 501)[:, None]  # Squares.
    kinds = random.integers([0, 1], [2, 9], (len(sides), 2))
    headers = [
        ImageHeader(place, height, width, orientation)
        for (place, orientation), (height, width) in zip(
            kinds.tolist(), sides.tolist(), strict=True
        )
    ]
    config = create_config(image_size=size, crop_fraction=fraction, resize=resize)
    upright = np.array(
        [
            (header.width, header.height)
            if header.orientation >= 5
            else (header.height, header.width)
            for header in headers
        ]
    )
    windows = augmentation.centre_crops(upright[:, 0], upright[:, 1], fraction=fraction)
    expected = find_parts(headers, windows, config)
    with tf.Graph().as_default(), tf1.Session() as session:
        given = GraphHeader(*(tf.constant(part) for part in np.array(headers).T))
        found = session.run(graph_parts.find_centres(given, config))
    for name, part in expected._asdict().items():
        ours = getattr(found, name)
        assert ours.dtype == part.dtype, name
        np.testing.assert_array_equal(ours, part, err_msg=name)
    assert len(np.unique(expected.decoders)) == (5 if resize == "antialias" else 2)


@contextlib.contextmanager
def header_reader():
    """A function from an encoded image to its header by the graph, or to the reason for none."""
    with tf.Graph().as_default() as graph:
        contents = tf1.placeholder(tf.string, [])
        headers = {
            turns_upright: graph_headers.read_header(
                contents, tf.constant(7), turns_upright=turns_upright
            )
            for turns_upright in (True, False)
        }
    with tf1.Session(graph=graph) as session:

        def read(data, *, turns_upright=True):
            try:
                return ImageHeader(*session.run(headers[turns_upright], {contents: data}))
            except tf.errors.InvalidArgumentError as error:
                return str(error)

        yield read


@pytest.fixture(scope="module")
def read_in_graph():
    with header_reader() as read:
        yield read


def in_python(data):
    """The header as evaluation reads it; None where it finds a fault."""
    try:
        return encoded.read_header(data)
    except BadImageError:
        return None


def check(read, data):
    """Compares the header that the graph finds with Python's; returns whether there is one."""
    expected, found = in_python(data), read(data)
    if expected is None or encoded.FORMATS[expected.format].decode is None:
        assert isinstance(found, str), data[:40]
        assert "image 7 of the batch" in found
        return False
    assert found == expected
    assert read(data, turns_upright=False) == expected._replace(orientation=1)
    return True


def with_exif(image_format, value, size=(30, 20), **options):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[TAG] = value
    out = io.BytesIO()
    Image.fromarray(noise(0, *size)).save(out, image_format, exif=exif, **options)
    return out.getvalue()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("value", [*range(10), 65535])
def test_size_and_orientation_are_found(read_in_graph, image_format, value):
    data = with_exif(image_format, value)
    assert check(read_in_graph, data)
    assert read_in_graph(data).orientation == (value if 1 <= value <= 8 else 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [2, 3, 4, 5])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_every_form_of_exif_is_read_alike_whole_and_cut_off(
    read_in_graph, image_format, kind, order
):
    """Cut off anywhere; with another orientation behind the first one, which counts."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010F, 2, 1, "I", 0), (TAG, kind, 1, "I" if kind == 4 else "Hxx", 6)]
    entries.append((TAG, 3, 1, "Hxx", 8))
    block = mark + struct.pack(f"{order}IxxH", 10, len(entries))
    for *numbers, form, value in entries:
        block += struct.pack(f"{order}HHI", *numbers) + struct.pack(f"{order}{form}", value)
    seen = set()
    for length in (*range(len(block) + 1), len(block) + 9):
        data = with_block(image_format, (block + bytes(9))[:length])
        assert check(read_in_graph, data)
        seen.add(read_in_graph(data).orientation)
    assert seen == ({1, 6} if kind in (3, 4) else {1, 8})


def with_block(image_format, block):
    """An image with this EXIF block."""
    if image_format == "JPEG":
        data = encode(noise(0, 30, 20), "JPEG")
        segment = b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block
        return data[:2] + segment + data[2:]
    data = encode(noise(0, 30, 20))
    end = 8 + 25  # Behind the header.
    return data[:end] + struct.pack(">I", len(block)) + b"eXIf" + block + bytes(4) + data[end:]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_damaged_headers_are_read_alike(read_in_graph, image_format):
    """Bytes changed within the first 150, and cut off anywhere.

    What the graph alone refuses, no decoder reads: kinds of JPEGs, and a scan before its frame.
    """
    whole = with_exif(image_format, 6)
    random = np.random.default_rng(0)
    cases = []
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(150, size=random.integers(1, 5)):
            damaged[place] = random.choice([0, 1, 255, 0xE1, 0xC0, 0xDA, 8, random.integers(256)])
        cases.append(bytes(damaged))
    cases += [whole[:length] for length in range(0, 160, 3)]
    seen = []
    for data in cases:
        expected, found = in_python(data), read_in_graph(data)
        if isinstance(found, str) != (expected is None):
            with pytest.raises(BadImageError):
                Decoder().decode(data, expected or found)
        else:
            seen.append(check(read_in_graph, data))
    assert len(cases) - 20 < len(seen)
    assert 30 < sum(seen) < len(seen) - 30


@pytest.mark.parametrize("between", [b"\0", b"garbage", b"\xff\xff", b"\xff\0x", b"\x01\xff\x00"])
def test_bytes_between_segments_are_passed_over(read_in_graph, between):
    data = with_exif("JPEG", 8)
    place = 2
    while data[place + 1] != 0xC0:
        data = data[:place] + between + data[place:]
        place += len(between)
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    assert check(read_in_graph, data)
    assert read_in_graph(data).orientation == 8


def test_a_png_may_have_its_orientation_behind_its_pixels(read_in_graph):
    data = with_block("PNG", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x05\0\0\0")
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert check(read_in_graph, moved)
    assert read_in_graph(moved).orientation == 5


def test_headers_without_an_end_end(monkeypatch):
    """Where a file has nothing but segments, or chunks, up to a bound."""
    most = 50
    monkeypatch.setattr(graph_headers, "_MOST_PARTS", most)
    png, chunk = encode(noise(0)), struct.pack(">I4sI", 0, b"teXt", 0)
    allowed = png[:33] + (most - 1) * chunk
    endless = b"\xff\xd8" + (most + 9) * b"\xff\xe0\0\2"
    with header_reader() as read:
        assert read(allowed).height == 24
        assert f"a PNG of more than {most} chunks" in read(allowed + 3 * chunk)
        assert "has an endless one" in read(endless)
        assert read(endless[:50] + encode(noise(0), "JPEG")[2:]).height == 24


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (20_000, 6001), (2**32 - 1,) * 2])
def test_too_many_pixels_and_none_are_refused_before_decoding(read_in_graph, height, width):
    data = bytearray(encode(noise(0)))
    data[16:24] = struct.pack(">II", width, height)
    assert f"1 to {by_pillow.MAX_PIXELS} pixels are allowed" in read_in_graph(bytes(data))
    assert not check(read_in_graph, bytes(data))


@pytest.mark.parametrize("image_format", ["WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_by_a_line(read_in_graph, image_format):
    data = encode(noise(0), image_format)
    assert "image 7 of the batch" in read_in_graph(data)
    assert "neither JPEG nor PNG" in read_in_graph(data)
    assert "neither JPEG nor PNG" in read_in_graph(b"")


def pictures():
    """Kinds of images that both decoders know: {name: encoded}."""
    colours = Image.fromarray(noise(1, 40, 52)).resize((60, 44), Image.Resampling.BICUBIC)

    def save(image, image_format, **options):
        out = io.BytesIO()
        image.save(out, image_format, **options)
        return out.getvalue()

    deep = np.linspace(0, 65535, 44 * 60).reshape(44, 60).astype(np.uint16)
    return {
        "grey jpeg": save(colours.convert("L"), "JPEG"),
        "cmyk jpeg": save(colours.convert("CMYK"), "JPEG"),
        "progressive jpeg": save(colours, "JPEG", progressive=True),
        "large jpeg": save(colours.resize((901, 700)), "JPEG"),
        "turned large jpeg": with_exif("JPEG", 6, size=(613, 407)),
        "one pixel jpeg": save(colours.resize((1, 1)), "JPEG"),
        "grey png": save(colours.convert("L"), "PNG"),
        "bilevel png": save(colours.convert("1"), "PNG"),
        "palette png": save(colours.quantize(7), "PNG"),
        "transparent palette png": save(colours.quantize(7), "PNG", transparency=2),
        "alpha png": save(Image.merge("RGBA", [*colours.split(), colours.split()[0]]), "PNG"),
        "grey alpha png": save(Image.merge("LA", [colours.split()[0]] * 2), "PNG"),
        "16-bit png": save(Image.fromarray(deep), "PNG"),
        "turned png": with_exif("PNG", 7),
        "one pixel png": save(colours.resize((1, 1)), "PNG"),
        "long png": save(colours.resize((3, 200)), "PNG"),
    }


def in_evaluation(images, config):
    """Returns what the pipeline makes of encoded images."""

    class Split:
        labels = np.arange(len(images))

        def read(self, example):
            return images[example]

        def where(self, example):
            return str(example)

    source = dataset.Source("x", None, Split(), None, None, "")
    info = dataset.DatasetInfo("x", 0, len(images), len(images), None, "")
    (batch,) = read_evaluation(dataset.Dataset(config, source, info))
    return batch.images


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"image_size": 32}, marks=pytest.mark.slow),
        {"image_size": 48, "crop_fraction": 1.0, "resize": "bilinear"},
        {"image_size": 20, "exif_orientation": "ignore"},
    ],
    ids=str,
)
def test_the_networks_input_is_that_of_evaluation(fields):
    """To the bit, in one batch of all kinds and sizes."""
    images = list(pictures().values())
    config = create_config(batch_size=len(images), **fields)
    expected = in_evaluation(images, config)
    with tf.Graph().as_default(), tf1.Session() as session:
        contents = tf1.placeholder(tf.string, [None])
        pixels = graph_parts.build_network_input(contents, config)
        assert pixels.shape.as_list() == [None, config.image_size, config.image_size, 3]
        found = session.run(pixels, {contents: images})
        alone = session.run(pixels, {contents: images[4:5]})
        none = session.run(pixels, {contents: np.array([], object)})
    for name, ours, evaluated in zip(pictures(), found, expected, strict=True):
        np.testing.assert_array_equal(ours, evaluated, err_msg=name)
    np.testing.assert_array_equal(alone[0], expected[4])
    assert none.shape == (0, config.image_size, config.image_size, 3)


def test_what_is_damaged_fails():
    config = create_config(image_size=8)
    whole = encode(noise(0, 64, 64), "JPEG")
    with tf.Graph().as_default(), tf1.Session() as session:
        contents = tf1.placeholder(tf.string, [None])
        pixels = graph_parts.build_network_input(contents, config)
        for bad, message in (
            (whole[:1500], "JPEG"),
            (encode(noise(0))[:200], "PNG"),
            (b"GIF89a", "image 1 of the batch"),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                session.run(pixels, {contents: [whole, bad]})


def test_the_graph_is_built_without_source_in_temporary_files():
    """AutoGraph imports what it converts from a file that a process that is killed leaves."""
    with tf.Graph().as_default():
        graph_parts.build_network_input(tf1.placeholder(tf.string, [None]), create_config())
    converted = [each for name, each in sys.modules.items() if name.startswith("__autograph")]
    sources = [Path(module.__file__).read_text() for module in converted]
    assert not [source for source in sources if "GraphHeader" in source]
