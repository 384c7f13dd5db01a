"""Pictures, read back from the PNG that TensorBoard gets; what an evaluation collects for them."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer.distributed import Group
from trainer.graph.evaluation import Predictions
from trainer.telemetry.pages import pictures
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


def test_a_confusion_matrix_is_darker_where_more_examples_are():
    counts = np.array([[9, 1, 0], [0, 10, 0], [5, 0, 5]])
    picture = pictures.draw_confusion(counts, ["cat", "dog", "bird"])
    left, top = 0, picture.height - 4 - 3 * 34
    while picture.getpixel((left, top)) != (225, 225, 225):  # The matrix's frame.
        left += 1
    corners = [[(left + 34 * x + 3, top + 34 * y + 3) for x in range(3)] for y in range(3)]
    light = np.array([[picture.getpixel(corner)[0] for corner in row] for row in corners])
    assert light[0, 2] == light[1, 0] == 255
    assert light[1, 1] < light[0, 0] < light[2, 0] == light[2, 2] < light[0, 1] < 255


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
    recorder = Recorder()
    views = DrawnEvaluationViews(recorder, names=["a", "b", "c"], images=2)
    views.add((predictions([0, 1, 2, 0], [0, 2, 2, 1], np.array([1.0, 1.0, 1.0, 0.0])), images(4)))
    views.add((predictions([2, 0, 1], [0, 0, 0]), images(3)))
    views.publish(7, group)
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
    views.add((predictions([50], [49]), images(1)))
    views.publish(1, Group())
    assert CONFUSION_TAG not in recorder.pictures
    assert MISCLASSIFIED_TAG in recorder.pictures
