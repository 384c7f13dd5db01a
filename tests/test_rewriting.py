"""Images in make_tfrecords.py become upright, no larger than wanted, and sRGB."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError
from test_inputs_orientation import smooth, write_turned
from test_inputs_resize import photograph, psnr

from trainer.errors import UserError
from trainer.inputs.conversion import convert
from trainer.inputs.conversion.rewrite import KEEP_SIZES, TURNED, Rewriting, rewrite
from trainer.inputs.source import BadImageError

ROOT = Path(__file__).parents[1]


def jpeg(pixels, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(1203, 1605, (342, 256)), (1605, 1203, (256, 342))]
)
def test_a_picture_becomes_as_small_as_wanted(height, width, size):
    data = jpeg(photograph(0, height, width))
    small, header, changes = rewrite(data, Rewriting(shorter_side=256, quality=100))
    assert changes == ("made smaller",)
    assert opened(small).format == "JPEG"
    assert opened(small).size == size
    assert (header.width, header.height) == size
    expected = opened(data).resize(size, Image.Resampling.BICUBIC)
    assert psnr(np.asarray(opened(small)), np.asarray(expected)) > 38


def test_one_that_is_small_already_stays_as_it_is():
    data = jpeg(photograph(0, 100, 300))
    assert rewrite(data, Rewriting(shorter_side=100)).data == data
    assert rewrite(data, KEEP_SIZES).data == data


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_one_that_becomes_smaller_is_upright(image_format, orientation):
    data = write_turned(smooth(orientation, 96, 160), image_format, orientation)
    small = opened(rewrite(data, Rewriting(shorter_side=48)).data)
    upright = ImageOps.exif_transpose(opened(data)).convert("RGB")
    assert small.size == (upright.width // 2, upright.height // 2)
    expected = upright.resize(small.size, Image.Resampling.BICUBIC)
    assert psnr(np.asarray(small), np.asarray(expected)) > 35
    assert small.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(64, 96), (61, 97)])
def test_a_turned_jpeg_stays_nearly_as_it_was(size, sampling):
    data = write_turned(smooth(3, *size), "JPEG", 6, quality=85, subsampling=sampling)
    turned = opened(rewrite(data, KEEP_SIZES).data)
    upright = ImageOps.exif_transpose(opened(data))
    assert turned.size == upright.size
    assert psnr(np.asarray(turned), np.asarray(upright)) > 40


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_all_modes_become_smaller(mode):
    image = smooth(0, 96, 160).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    out = io.BytesIO()
    image.save(out, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
    small = opened(rewrite(out.getvalue(), Rewriting(shorter_side=48)).data)
    assert (small.mode, small.size) == ("RGB", (80, 48))
    grey = mode in ("1", "L", "LA", "I;16")
    expected = smooth(0, 96, 160).convert("L" if grey else "RGB").convert("RGB").resize((80, 48))
    assert abs(np.asarray(small).mean() - np.asarray(expected).mean()) < 5


def test_what_pillow_refuses_is_turned_all_the_same():
    """A PNG whose chunk of the time has a wrong checksum."""
    data = write_turned(smooth(0, 64, 96), "PNG", 6)
    chunk = b"tIME" + bytes(7)
    damaged = data[:33] + (7).to_bytes(4, "big") + chunk + b"none" + data[33:]
    with pytest.raises(UnidentifiedImageError):
        opened(damaged)
    for rewriting in (KEEP_SIZES, Rewriting(32)):
        turned = opened(rewrite(damaged, rewriting).data)
        assert turned.width < turned.height


@pytest.mark.parametrize("image_format", ["WEBP", "JPEG"])
def test_a_damaged_exif_block_does_not_make_an_image_bad(image_format):
    out = io.BytesIO()
    smooth(0).save(out, image_format, exif=b"Exif\0\0garbagegarbage")
    for rewriting in (KEEP_SIZES, Rewriting(32)):
        assert TURNED not in rewrite(out.getvalue(), rewriting).changes


def test_a_result_that_is_too_long_for_a_jpeg_is_a_png():
    out = io.BytesIO()
    Image.new("L", (70_000, 50)).save(out, "PNG")
    small, header, _ = rewrite(out.getvalue(), Rewriting(49))
    assert (opened(small).format, header.height, header.width) == ("PNG", 49, 68600)


def test_a_turned_jpeg_keeps_its_tables_in_whatever_order_they_come():
    data = write_turned(smooth(3, 64, 96), "JPEG", 6, quality=60)
    first = data.index(b"\xff\xdb")
    second = data.index(b"\xff\xdb", first + 1)
    end = second + 2 + int.from_bytes(data[second + 2 : second + 4], "big")
    exchanged = data[:first] + data[second:end] + data[first:second] + data[end:]
    (one, two) = (rewrite(jpeg, KEEP_SIZES).data for jpeg in (data, exchanged))
    assert opened(one).quantization == opened(two).quantization
    tables = {number: np.reshape(t, (8, 8)) for number, t in opened(data).quantization.items()}
    for number, table in opened(one).quantization.items():
        np.testing.assert_array_equal(np.reshape(table, (8, 8)), tables[number].T)


def test_a_damaged_picture_is_refused():
    data = jpeg(photograph(0, 400, 600))
    for rewriting in (KEEP_SIZES, Rewriting(shorter_side=100)):
        with pytest.raises(BadImageError):
            rewrite(data[: len(data) // 2], rewriting)


def write_pictures(root, count=24):
    for number in range(count):
        folder = root / f"{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(photograph(number, 300, 400)))


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def command(source, out, *more):
    program = str(ROOT / "scripts" / "make_tfrecords.py")
    return [
        *(sys.executable, program, f"--images={source}", f"--out={out}"),
        *("--shorter_side=64", "--shard_mb=0.2", "--processes=2", *more),
    ]


@pytest.mark.slow
def test_killed_and_started_again_it_writes_the_same_bits(tmp_path):
    write_pictures(tmp_path / "in")
    subprocess.run(command(tmp_path / "in", tmp_path / "whole"), check=True, timeout=120)
    killed = subprocess.Popen(command(tmp_path / "in", tmp_path / "killed"), start_new_session=True)
    while not list((tmp_path / "killed").glob("*.receipt")) and killed.poll() is None:
        time.sleep(0.002)
    if killed.poll() is None:
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    subprocess.run(command(tmp_path / "in", tmp_path / "killed"), check=True, timeout=120)
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    described = json.loads((tmp_path / "whole" / "dataset.json").read_text())
    assert described["largest_image"] == [64, 85]


def test_another_size_writes_the_shards_anew(tmp_path):
    write_pictures(tmp_path / "in", 4)
    said = []
    for side in (64, 32):
        convert.convert(
            str(tmp_path / "in"), str(tmp_path / "out"), rewriting=Rewriting(side), say=said.append
        )
        (path,) = (tmp_path / "out").glob("train-*")
        for record in tf.data.TFRecordDataset(str(path)):
            features = tf.train.Example.FromString(record.numpy()).features.feature
            (data,) = features["image/encoded"].bytes_list.value
            assert min(opened(data).size) == side
            assert features["image/height"].int64_list.value == [side]
    shrunk = "4 images made smaller"
    assert [line for line in said if not line.endswith("they are replaced")] == [shrunk, shrunk]


@pytest.mark.slow
def test_a_quality_that_there_is_not_is_one_line(tmp_path):
    write_pictures(tmp_path / "in", 2)
    for value in ("0", "101"):
        result = subprocess.run(
            command(tmp_path / "in", tmp_path / "out", f"--quality={value}"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode != 0
        assert "--quality: must be at" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_what_is_damaged_is_counted(tmp_path):
    write_pictures(tmp_path / "in", 4)
    path = tmp_path / "in" / "0" / "0.jpg"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="--max_bad: 1 files cannot be read"):
        convert.convert(
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            rewriting=Rewriting(64),
            say=lambda _: None,
        )


def test_options_that_would_do_harm_or_nothing_are_refused(tmp_path):
    write_pictures(tmp_path / "in", 2)
    program = str(ROOT / "scripts" / "make_tfrecords.py")
    source = f"--images={tmp_path}/in"
    for options, told in (
        ([f"--out={tmp_path}/in/shards"], "--out: must not be within --images"),
        ([f"--out={tmp_path}/out", "--quality=80"], "--quality: must be given with --shorter_side"),
    ):
        result = subprocess.run(
            [sys.executable, program, source, *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode != 0
        assert told in result.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "0 bytes"),
        (b"hello", "it begins with b'hello'"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC, neither"),
    ],
)
def test_what_is_no_image_is_told_as_in_training(data, told):
    for rewriting in (KEEP_SIZES, Rewriting(32)):
        with pytest.raises(BadImageError, match=told):
            rewrite(data, rewriting)


def test_what_is_cut_off_is_told_with_its_format():
    out = io.BytesIO()
    smooth(0).save(out, "AVIF")
    with pytest.raises(BadImageError, match="an AVIF: "):
        rewrite(out.getvalue()[:-200], KEEP_SIZES)
