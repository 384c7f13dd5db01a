"""Kinds of images beyond the usual: modes, depths and codings, in shards and in verification."""

import io
import struct

import numpy as np
import PIL
import pytest
import tensorflow as tf
from input_data import create_config, encode, noise, read_evaluation, read_train
from PIL import Image

from trainer.distributed import Worker
from trainer.inputs import dataset
from trainer.inputs.conversion.rewrite import KEEP_SIZES, rewrite
from trainer.inputs.conversion.verify import Verifier
from trainer.inputs.images import encoded, reader
from trainer.inputs.images.decoder import Decoder
from trainer.inputs.rows import EvaluationRows
from trainer.inputs.source import BadImageError

HEIGHT, WIDTH = 20, 30


def ramp(bands, dtype=np.uint8):
    """A smooth picture over the whole range of `dtype`, with `bands` bands."""
    largest = 1 if dtype == np.float32 else np.iinfo(dtype).max
    rows, columns = np.meshgrid(np.linspace(0, 1, HEIGHT), np.linspace(0, 1, WIDTH), indexing="ij")
    parts = [rows, columns, (rows + columns) / 2, 1 - rows][:bands]
    values = np.stack(parts, axis=-1) * largest
    values = values.astype(dtype)
    return values[..., 0] if bands == 1 else values


def tiff(pixels, mode):
    """A TIFF whose pixels Pillow knows by this mode."""
    if mode in ("1", "P"):
        image = Image.fromarray(pixels).convert(mode)
    elif mode == "RGBX":
        image = Image.frombytes(mode, (WIDTH, HEIGHT), pixels.tobytes())
    else:
        image = Image.fromarray(pixels, None if mode == "I;16" else mode)
    out = io.BytesIO()
    image.save(out, "TIFF")
    return out.getvalue()


def of_cmyk(pixels):
    ink, black = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    return (255 - ink) * (255 - black) / 255


def of_ycbcr(pixels):
    """ITU-R BT.601, as JFIF has it."""
    y, blue, red = (pixels[..., band].astype(float) for band in range(3))
    blue, red = blue - 128, red - 128
    rgb = (y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue)
    return np.clip(np.stack(rgb, axis=-1), 0, 255)


def of_grey(pixels):
    return np.repeat(pixels.astype(float)[..., None], 3, axis=-1)


RIGHT = {
    "1": (ramp(1), None),
    "L": (ramp(1), of_grey),
    "LA": (ramp(2), lambda pixels: of_grey(pixels[..., 0])),
    "P": (ramp(1), of_grey),
    "RGB": (ramp(3), lambda pixels: pixels),
    "RGBA": (ramp(4), lambda pixels: pixels[..., :3]),
    "RGBX": (ramp(4), lambda pixels: pixels[..., :3]),
    "CMYK": (ramp(4), of_cmyk),
    "YCbCr": (ramp(3), of_ycbcr),
    "I;16": (ramp(1, np.uint16), lambda pixels: of_grey(pixels / 257)),
}


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize("mode", RIGHT)
def test_pixels_in_shards_are_right(mode):
    pixels, to_rgb = RIGHT[mode]
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        # It takes the three bands that it has written for four.
        with pytest.raises(BadImageError, match="truncated"):
            rewrite(tiff(pixels, mode), KEEP_SIZES)
        return
    data, header, _ = rewrite(tiff(pixels, mode), KEEP_SIZES)
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    found = tf.io.decode_png(data, channels=3).numpy().astype(float)
    if to_rgb is None:  # Dithered: right on the whole.
        assert set(np.unique(found)) == {0, 255}
        assert abs(found.mean() - pixels.mean()) < 16
    else:
        assert np.abs(found - to_rgb(pixels)).max() <= 3


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_pixels_are_right_where_0_is_white(mode):
    pixels, to_rgb = RIGHT[mode]
    entry = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # Tag 262, PhotometricInterpretation: a short.
    data = tiff(pixels, mode)
    assert data.count(entry + b"\x01") == 1
    data, *_ = rewrite(data.replace(entry + b"\x01", entry + b"\x00"), KEEP_SIZES)
    found = tf.io.decode_png(data, channels=3).numpy().astype(float)
    assert np.abs(found - (255 - to_rgb(pixels))).max() <= 3


def tiff_of_12_bits(rows):
    """A TIFF of rows of an even number of levels of 12 bits, put together by hand (TIFF 6.0)."""
    packed = b"".join(
        bytes((one >> 4, (one & 15) << 4 | other >> 8, other & 255))
        for row in rows.tolist()
        for one, other in zip(row[::2], row[1::2], strict=True)
    )
    height, width = rows.shape
    entries = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 277: 1, 278: height}
    entries |= {273: 8 + 2 + 12 * 9 + 4, 279: len(packed)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + packed


def test_pixels_of_12_bits_are_right():
    levels = ramp(1, np.uint16) >> 4
    data, *_ = rewrite(tiff_of_12_bits(levels), KEEP_SIZES)
    found = tf.io.decode_png(data, channels=3).numpy().astype(float)
    assert np.abs(found - of_grey(levels / 4095 * 255)).max() <= 3
    assert found.max() > 250


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("mode", "pixels"),
    [("I", ramp(1, np.int32)), ("F", ramp(1, np.float32)), ("LAB", ramp(3))],
)
def test_pixels_without_a_range_are_refused_by_name(mode, pixels):
    with pytest.raises(BadImageError, match=f"mode {mode}, which cannot be turned into red, "):
        rewrite(tiff(pixels, mode), KEEP_SIZES)


def test_no_profile_of_other_colours_goes_into_shards():
    out = io.BytesIO()
    Image.fromarray(noise(0)).save(out, "TIFF", icc_profile=b"some profile" * 20)
    data, *_ = rewrite(out.getvalue(), KEEP_SIZES)
    assert b"iCCP" not in data


def segments(data):
    """The segments of a JPEG up to its pixels, and the rest."""
    parts, position = [data[:2]], 2
    while data[position + 1] != 0xDA:
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        parts.append(data[position : position + length])
        position += length
    return parts, data[position:]


@pytest.mark.parametrize("between", [b"\0", b"garbage", b"\xff\xff", b"\xff\0x", b"\x01\xff\x00"])
def test_bytes_between_segments_are_passed_over_as_the_decoder_does(between):
    parts, rest = segments(encode(noise(0, 30, 70), "JPEG"))
    data = parts[0] + between.join(parts[1:]) + between + rest
    header = encoded.read_header(data)
    assert (header.height, header.width) == (30, 70)
    np.testing.assert_array_equal(
        Decoder().decode(data, header), tf.io.decode_jpeg(data, channels=3).numpy()
    )


def with_frame(marker, depth):
    """A JPEG whose start-of-frame segment says that it is of another kind."""
    data = bytearray(encode(noise(0, 30, 70), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = marker, depth
    return bytes(data)


@pytest.mark.parametrize(
    ("marker", "depth", "kind"),
    [
        (0xC3, 8, "a lossless JPEG"),
        (0xC3, 12, "a lossless JPEG"),
        (0xC1, 12, "a JPEG of 12 bits"),
        (0xC5, 8, "a hierarchical JPEG"),
    ],
)
def test_kinds_of_jpegs_that_the_decoder_does_not_know_are_named(marker, depth, kind):
    with pytest.raises(BadImageError, match=rf"^{kind}, .* Save it as PNG"):
        encoded.read_header(with_frame(marker, depth))


def test_what_training_can_not_decode_is_not_put_into_shards():
    """Here nobody can: its kind is told, and no other reason."""
    with pytest.raises(BadImageError, match=r"^a lossless JPEG"):
        rewrite(with_frame(0xC3, 8), KEEP_SIZES)
    cut = encode(noise(0, 64, 64), "JPEG")[:1500]
    with pytest.raises(BadImageError, match="damaged or cut off"):
        rewrite(cut, KEEP_SIZES)


WHOLE = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "full colour": {"subsampling": 0},
    "grey": {},
}


@pytest.mark.parametrize("name", WHOLE)
def test_rows_that_are_missing_behind_an_early_end_are_found(tmp_path, name):
    pixels = noise(0, 96, 64)
    data = encode(pixels[..., 0] if name == "grey" else pixels, "JPEG", **WHOLE[name])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "whole.jpg").write_bytes(data)
    (tmp_path / "a" / "trailing.jpg").write_bytes(data + b"more \xff\xd9")
    assert verdict(tmp_path, thorough=True) == ()
    cut = data[: len(data) // 2].rstrip(b"\xff") + b"\xff\xd9"
    (tmp_path / "a" / "cut.jpg").write_bytes(cut)
    assert verdict(tmp_path, thorough=False) == ()
    (fault,) = verdict(tmp_path, thorough=True)
    assert fault.startswith(f"{tmp_path}/a/cut.jpg: a JPEG whose data end at about row ")


def verdict(folder, *, thorough):
    (found,) = Verifier(str(folder), thorough=thorough).run(1)
    return found.faults


def test_a_tiff_is_turned_by_its_own_tag_alone():
    """Pillow itself would turn it by XMP, too, which its size in the header does not tell."""
    description = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><y tiff:Orientation="6"/></x:xmpmeta>'
    pixels = noise(3, HEIGHT, WIDTH)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF", tiffinfo={700: description})
    with Image.open(io.BytesIO(out.getvalue())) as image:
        image.load()
        assert image.size == (HEIGHT, WIDTH)
    data = out.getvalue()
    header = encoded.read_header(data)
    assert (header.height, header.width, header.orientation) == (HEIGHT, WIDTH, 1)
    np.testing.assert_array_equal(Decoder().decode(data, header), pixels)


@pytest.mark.parametrize("cache", ["none", pytest.param("decoded", marks=pytest.mark.slow)])
def test_large_pictures_wait_for_the_graph_undecoded(tmp_path, monkeypatch, cache):
    """Of two lots, the second counts as large, and gives the same batches."""
    kinds = ("WEBP", "TIFF", "BMP", "PNG")
    for split in ("train", "validation"):
        for number in range(8):
            folder = tmp_path / split / f"{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            data = encode(noise(number, 40, 60), kinds[number % 4])
            bad = number == 5  # A TIFF without its end.
            (folder / f"{number}.png").write_bytes(data[:2000] if bad else data)
    config = create_config(
        data_dir=str(tmp_path), batch_size=8, cache=cache, max_bad_examples=1, augment="standard"
    )
    lots = []
    for most in (reader.MOST_BYTES, 500):
        monkeypatch.setattr(reader, "MOST_BYTES", most)
        opened = dataset.open_dataset(config)
        lots.append([*read_train(opened, steps=3), *read_evaluation(opened)])
        images = opened._reader("validation", Worker())
        assert images.bad_examples == 1
        maker = EvaluationRows(config, opened._split("validation"), Worker(), images)
        rows = maker.create(np.arange(8), decode=False)
        waiting = [len(rows.contents[row]) for row in np.flatnonzero(rows.decoders < 0)]
        assert len(waiting) >= 5
        assert max(waiting) <= most
    for first, second in zip(*lots, strict=True):
        for part, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(part, other)
    assert sum(batch.weights.sum() for batch in lots[0][3:]) == 7
