"""Pictures, read back from the PNG that TensorBoard gets; what an evaluation collects for them."""

import functools
import io
import os
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainer.distributed import Group
from trainer.graph.evaluation import Predictions
from trainer.telemetry.pages import fonts, pictures
from trainer.telemetry.pages.evaluation_views import (
    CONFUSION_TAG,
    MISCLASSIFIED_TAG,
    DrawnEvaluationViews,
)
from trainer.telemetry.writers import protocol


class Recorder(protocol.NullWriter):
    def __init__(self):
        self.pictures = {}

    def write_summary(self, step, summary, *, wall_time):
        (value,) = summary.value
        self.pictures[value.tag] = Image.open(io.BytesIO(value.image.encoded_image_string))
        assert self.pictures[value.tag].size == (value.image.width, value.image.height)


class TwoWorkers(Group):
    """The other worker has the same predictions."""

    def gather(self, value):
        return [value, value]


def predictions(labels, classes, weights=None):
    labels, classes = np.array(labels), np.array(classes)
    return Predictions(labels, classes, np.ones(len(labels)) if weights is None else weights)


def images(count):
    """Images that are told apart by their colour."""
    return np.stack([np.full((96, 96, 3), 10 * number, np.uint8) for number in range(count)])


def test_a_sheet_holds_its_images_side_by_side():
    sheet = np.asarray(pictures.draw_sheet(list(images(4)), ["a", "b", "c\nd", "e"]))
    tiles = [sheet[: sheet.shape[0] // 2], sheet[sheet.shape[0] // 2 :]]
    for number in range(4):
        half = np.split(tiles[number // 2], 2, axis=1)[number % 2]
        assert (half[2:98, 2:98] == 10 * number).all()


def test_small_images_are_enlarged_without_blur():
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    sheet = np.asarray(pictures.draw_sheet([small], ["x"]))
    assert (sheet[2:98, 2:98][::48, ::48] == small).all()


def corner_of(picture, classes):
    """Returns where the cells of a confusion matrix begin."""
    left, top = 0, picture.height - 4 - 34 * classes
    while picture.getpixel((left, top)) != (225, 225, 225):  # The matrix's frame.
        left += 1
    return left, top


def test_a_confusion_matrix_is_darker_where_more_examples_are():
    counts = np.array([[9, 1, 0], [0, 10, 0], [5, 0, 5]])
    picture = pictures.draw_confusion(counts, ["cat", "dog", "bird"])
    left, top = corner_of(picture, 3)
    corners = [[(left + 34 * x + 3, top + 34 * y + 3) for x in range(3)] for y in range(3)]
    light = np.array([[picture.getpixel(corner)[0] for corner in row] for row in corners])
    assert light[0, 2] == light[1, 0] == 255
    assert light[1, 1] < light[0, 0] < light[2, 0] == light[2, 2] < light[0, 1] < 255


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_the_columns_of_a_confusion_matrix_have_names(classes):
    """Each is read from below, above its own column; a class that is a number has none."""
    names = [f"class {number} of {classes}" for number in range(classes)]
    names[1] = "1"
    picture = pictures.draw_confusion(np.eye(classes, dtype=int), names)
    left, top = corner_of(picture, classes)
    ink = 255 - np.asarray(picture.convert("L")).astype(int)
    above = ink[16 : top - 14, left:]  # Between the title and the numbers.
    for number, name in enumerate(names):
        column = above[:, 34 * number : 34 * number + 34]
        plain = Image.new("L", (200, 20), 255)
        if name != str(number):
            ImageDraw.Draw(plain).text((2, 2), name, 20)
        assert column.sum() == (255 - np.asarray(plain).astype(int)).sum()
        assert (column[:, :8] == 0).all()
        assert (column[:, -8:] == 0).all()


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Replaces fontconfig by a program that finds STIX; returns what it is asked for."""
    stix = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
    program = tmp_path / "fc-match"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nprintf "0 %s" {stix}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(fonts, "_create_fonts", functools.cache(fonts._Fonts))
    return tmp_path / "asked"


def test_letters_of_other_languages_are_no_boxes(search):
    sheets = []
    for text in ("жук", "шар", "\U0010ffff" * 3):
        fonts._has.cache_clear()
        sheets.append(np.asarray(pictures.draw_sheet(list(images(1)), [text], [text]))[98:])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (sheets[one] != sheets[other]).any()
    for name in ("Köter", "жук", "ξυλο", "naïve œuvre"):
        line = fonts.fit(name, 200)
        assert line.text == name
        # Two letters that look different are different pixels; a font draws one box for all.
        shapes = {bytes(line.font.getmask(c)) for c in unicodedata.normalize("NFC", name)}
        assert len(shapes) == len(set(name))
    assert "1d81" not in search.read_text()


def test_what_only_a_font_of_the_system_has_is_drawn_with_it_and_sought_once(search):
    for _ in range(2):
        line = fonts.fit("a\u1d81", 100)
        assert line.text == "a\u1d81"
        assert line.font.getname()[0] == "STIXGeneral"
    assert fonts.fit("cat", 100).font.getname()[0] == "Aileron"
    (asked,) = search.read_text().splitlines()
    assert asked.endswith(":charset=61 1d81 2026")


@pytest.mark.parametrize("is_there", [True, False])
def test_what_no_font_has_is_escaped(search, is_there, monkeypatch):
    if not is_there:
        monkeypatch.setenv("PATH", "/nowhere")
    assert fonts.fit("猫 cat", 100).text == r"\u732b cat"


@pytest.mark.parametrize("text", ["a rather long name of a file, 123.jpeg", "длинное имя " * 9])
def test_a_long_text_is_cut_to_the_room_there_is(text):
    start, end = fonts.fit(text, 96), fonts.fit(text, 96, keeps_end=True)
    assert text.startswith(start.text.removesuffix("…"))
    assert text.endswith(end.text.removeprefix("…"))
    for line in (start, end):
        assert 80 < line.pixels <= 96
        assert line.text.count("…") == 1


@pytest.mark.parametrize("group", [Group(), TwoWorkers()])
def test_an_evaluation_counts_and_shows_what_was_wrong(group, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        pictures,
        "draw_confusion",
        lambda counts, names: (
            drawn.setdefault("counts", counts) is None or Image.new("RGB", (1, 1))
        ),
    )
    draw_sheet = pictures.draw_sheet
    texts = []
    monkeypatch.setattr(
        pictures,
        "draw_sheet",
        lambda *parts: texts.extend(zip(*parts[1:], strict=True)) or draw_sheet(*parts),
    )
    recorder = Recorder()
    views = DrawnEvaluationViews(recorder, names=["a", "b", "c"], images=2)
    first = predictions([0, 1, 2, 0], [0, 2, 2, 1], np.array([1.0, 1.0, 1.0, 0.0]))
    views.add((first, images(4)), "1/{}.jpg".format)
    views.add((predictions([2, 0, 1], [0, 0, 0]), images(3)), "2/\n{}.jpg".format)
    views.publish(7, group)
    assert texts == [("b\nnot c", "1/1.jpg"), ("c\nnot a", r"2/\n0.jpg")]
    workers = len(group.gather(None))
    np.testing.assert_array_equal(
        drawn["counts"], workers * np.array([[2, 0, 0], [1, 0, 1], [1, 0, 1]])
    )
    sheet = np.asarray(recorder.pictures[MISCLASSIFIED_TAG])
    first, second = np.split(sheet, 2, axis=1)
    assert (first[2:98, 2:98] == 10).all()  # The second of the first batch; the fourth is padding.
    assert (second[2:98, 2:98] == 0).all()  # The first of the second batch.
    recorder.pictures.clear()
    views.publish(8, group)
    assert MISCLASSIFIED_TAG not in recorder.pictures


def test_no_matrix_beyond_50_classes():
    recorder = Recorder()
    views = DrawnEvaluationViews(recorder, names=[str(number) for number in range(51)], images=2)
    views.add((predictions([50], [49]), images(1)), str)
    views.publish(1, Group())
    assert CONFUSION_TAG not in recorder.pictures
    assert MISCLASSIFIED_TAG in recorder.pictures
