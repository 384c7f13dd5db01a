"""Colours of images in make_tfrecords.py: those of a profile become sRGB's."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageCms
from test_inputs_orientation import smooth, write_turned
from test_inputs_resize import photograph, psnr
from test_rewriting import jpeg, opened

from trainer.inputs.conversion.rewrite import KEEP_SIZES, Rewriting, rewrite


def test_other_colours_become_srgb():
    """A profile that exchanges red and blue shows that it is used."""
    swapped = swapped_profile()
    data = jpeg(photograph(0, 200, 300), icc_profile=swapped, subsampling=0)
    small, _, changes = rewrite(data, Rewriting(shorter_side=100, quality=100))
    assert "turned from other colours into sRGB" in changes
    plain = opened(data).resize((150, 100), Image.Resampling.BICUBIC)
    expected = np.asarray(plain)[..., ::-1]
    assert psnr(np.asarray(opened(small)), expected) > 25
    assert "icc_profile" not in opened(small).info


def swapped_profile():
    """The sRGB profile with the primaries of red and blue exchanged, and another description."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    entries = {bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data).replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))


def test_a_damaged_profile_says_nothing():
    data = jpeg(photograph(0, 200, 300), icc_profile=b"nothing of the kind" * 9)
    assert rewrite(data, Rewriting(shorter_side=100)).changes == ("made smaller",)


def without_segment(data, marker):
    """A JPEG without its first segment of a kind."""
    start = data.index(marker)
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


@pytest.mark.parametrize("rewriting", [KEEP_SIZES, Rewriting(100)])
@pytest.mark.parametrize("has_marker", [True, False])
@pytest.mark.parametrize("orientation", [1, 3])
def test_cmyk_has_the_colours_that_training_reads(rewriting, has_marker, orientation):
    image = Image.fromarray(np.full((200, 200, 3), (200, 30, 90), np.uint8)).convert("CMYK")
    data = write_turned(image, "JPEG", orientation)
    if not has_marker:
        data = without_segment(data, b"\xff\xee")
    seen = tf.io.decode_jpeg(data, channels=3).numpy().mean((0, 1))
    small = np.asarray(opened(rewrite(data, rewriting).data).convert("RGB")).mean((0, 1))
    if rewriting == KEEP_SIZES and orientation == 1:
        assert rewrite(data, rewriting).data == data
    else:
        assert np.abs(small - seen).max() < 3


def test_without_a_wanted_size_colours_stay():
    out = io.BytesIO()
    smooth(0).save(out, "WEBP", lossless=True, icc_profile=swapped_profile())
    png, _, changes = rewrite(out.getvalue(), KEEP_SIZES)
    assert changes == ("of other formats turned into PNG",)
    np.testing.assert_array_equal(np.asarray(opened(png)), np.asarray(smooth(0)))


def in_srgb(data, **rewriting):
    """Returns what becomes of an image with other colours, as pixels."""
    small, _, changes = rewrite(data, Rewriting(quality=100, **rewriting))
    assert "turned from other colours into sRGB" in changes
    assert "icc_profile" not in opened(small).info
    return np.asarray(opened(small).convert("RGB"))


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [(name, "RGB") for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    + [("PNG", "P"), ("PNG", "P with transparency"), ("PNG", "RGBA"), ("WEBP", "RGBA")],
)
def test_with_one_small_images_are_in_srgb_too(image_format, mode):
    image = smooth(0).convert(mode.split()[0])
    options = {"transparency": b"\0\x80"} if "transparency" in mode else {}
    out = io.BytesIO()
    image.save(out, image_format, icc_profile=swapped_profile(), **options)
    expected = np.asarray(image.convert("RGB"))[..., ::-1]
    assert psnr(in_srgb(out.getvalue(), shorter_side=1000), expected) > 25


def simple_profile(space, connection, curves):
    """An ICC profile (ICC.1:2001-04) of a colour space, with a tag that turns it into another."""
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50, in 65536ths.
    tags = {
        b"desc": b"desc" + struct.pack(">2I", 0, 5) + b"test".ljust(83, b"\0"),
        b"wtpt": b"XYZ " + bytes(4) + white,
        **curves,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(table + body), b"", 0x2100000, b"scnr", space, connection
    )
    return (head + bytes(12) + b"acsp" + bytes(28) + white).ljust(128, b"\0") + table + body


@pytest.mark.parametrize("side", [1000, 24])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_with_a_profile_becomes_srgb(mode, side):
    """One whose numbers are light itself, to which sRGB (IEC 61966-2-1) gives other numbers."""
    linear = simple_profile(b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(8)})
    levels = np.full((48, 80), 90, np.uint8)
    image = Image.fromarray(levels).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    out = io.BytesIO()
    image.save(out, "PNG", icc_profile=linear)
    seen = in_srgb(out.getvalue(), shorter_side=side)
    light = 90 / 255
    assert np.abs(seen - 255 * (1.055 * light ** (1 / 2.4) - 0.055)).max() < 2


def test_inks_with_a_profile_become_srgb():
    """One by which cyan alone is dark shows that it is used."""
    one = struct.pack(">9i", *(65536 * np.identity(3, int)).ravel())
    lightness = [0 if number & 8 else 255 for number in range(16)]
    corners = b"".join(bytes([light, 128, 128]) for light in lightness)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + one
    table += bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    inks = np.zeros((40, 60, 4), np.uint8)
    inks[:, :30, 0] = inks[:, 30:, 1:] = 255
    out = io.BytesIO()
    profile = simple_profile(b"CMYK", b"Lab ", {b"A2B0": table})
    Image.fromarray(inks, "CMYK").save(out, "JPEG", quality=100, icc_profile=profile)
    for side in (1000, 20):
        seen = in_srgb(out.getvalue(), shorter_side=side)
        middle = seen.shape[1] // 2
        assert seen[:, : middle - 8].max() < 10
        assert seen[:, middle + 8 :].min() > 245
