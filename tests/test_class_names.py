"""Labels of a data set by the names of a trained network's classes."""

import numpy as np
import pytest
from input_data import Numbered

from trainer.errors import UserError
from trainer.inputs import class_names, dataset, source
from trainer.inputs.source import Source


class Letters(Numbered):
    """Examples of these labels."""

    def __init__(self, *labels):
        super().__init__(len(labels))
        self.labels = np.array(labels)


def letters(names, *labels):
    return Source("letters", Letters(0), Letters(*labels), len(names), tuple(names), "1")


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        ("abcd", [0, 1, 3], [0, 1, 3]),
        ("bd", [0, 1, 1], [1, 3, 3]),
        ("ab", [0, 1], [0, 1]),
        ("dcba", [0, 1, 3], [3, 2, 0]),
    ],
)
def test_labels_are_the_networks(names, labels, expected):
    found = class_names.by_name(letters(names, *labels), "abcd")
    assert found.validation.labels.tolist() == expected
    assert found.class_names == tuple("abcd")
    assert found.validation.where(1) == letters(names, *labels).validation.where(1)
    assert source.name_of(found.validation, 1) == "example 1"
    assert found.validation.read(1) == letters(names, *labels).validation.read(1)


def test_without_names_labels_stay_and_the_names_are_the_networks():
    plain = letters("ab", 0, 1)._replace(class_names=None)
    found = class_names.by_name(plain, ("x", "y"))
    assert found.validation is plain.validation
    assert found.class_names == ("x", "y")


@pytest.mark.parametrize(
    ("names", "known", "said"),
    [
        ("bx", "abcd", "has the class 'x', which is none of the network's 4 classes: 'a', 'b', "),
        ("xyab", "abcdef", r"has the class 'x' \(and 1 more\), .* 6 classes: .*'e', \.\.\.$"),
        ("aab", "ab", "'a' is the name of several classes of the data"),
        ("ba", "abb", "'b' is the name of several classes of the network"),
        ("abcde", "abcd", "has the class 'e'"),
    ],
)
def test_what_has_no_label_is_refused_by_name(names, known, said):
    with pytest.raises(UserError, match=said):
        class_names.by_name(letters(names, 0), known)


def failing(config):
    raise OSError(config.dataset)


def test_a_data_set_that_raises_says_why(monkeypatch):
    monkeypatch.setitem(dataset.BUILT_IN, "letters", failing)
    with pytest.raises(UserError, match=r"letters: cannot be read \(letters\)"):
        dataset.open_dataset(dataset.DataConfig(dataset="letters"))


def test_a_data_set_without_training_examples_has_the_classes_of_its_others(monkeypatch):
    source = letters("abc", 0, 2)._replace(train=Letters(), num_classes=None, class_names=None)
    monkeypatch.setitem(dataset.BUILT_IN, "letters", lambda config: source)
    assert dataset.open_dataset(dataset.DataConfig(dataset="letters")).info.num_classes == 3


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_refused(monkeypatch, label):
    source = letters("db", 0, label)
    monkeypatch.setitem(dataset.BUILT_IN, "letters", lambda config: source)
    config = dataset.DataConfig(dataset="letters")
    with pytest.raises(UserError, match=f"first other one is {label}"):
        dataset.open_dataset(config, num_classes=4, class_names="abcd")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("abc", "abc", None),
        ("abc", "acb", "class 1 was 'b' and is 'c'"),
        ("abc", "ab", "there were 3 classes and are 2"),
    ],
)
def test_the_first_difference_is_told(before, now, said):
    assert class_names.first_difference(before, now) == said


def test_labels_that_are_keys_are_refused():
    source = letters("ab", 3, 999_999)
    assert class_names.count_classes(source) == 1_000_000
    with pytest.raises(UserError, match=f"its label is {2**40}, of 2 examples: labels must be"):
        class_names.count_classes(letters("ab", 3, 2**40))
