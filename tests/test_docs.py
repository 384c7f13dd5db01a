"""The pages in docs/ say what the code does: tags, tests, and the README's length."""

import ast
import re

import fixed_tags
import pytest
from processes import ROOT

from trainer.process import settings
from trainer.telemetry import tags


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def tags_of_section(text, title):
    """The first cells of a section's table."""
    _, _, section = text.partition(f"## {title}\n")
    section, _, _ = section.partition("\n## ")
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "table", "fixed"),
    [
        ("Scalars at every step", tags.EVERY_STEP, fixed_tags.EVERY_STEP),
        ("Other scalars", tags.OCCASIONAL, fixed_tags.EVALUATION | fixed_tags.BENCHMARK),
    ],
)
def test_the_page_names_tags_that_are_written_and_all_that_are_fixed(title, table, fixed):
    told = tags_of_section(page("docs/monitoring.md"), title)
    assert len(told) == len(set(told))
    assert fixed <= set(told) <= {row.name for row in table}


def test_the_tests_that_hold_a_behaviour_are_there():
    named = set(re.findall(r"(test_\w+\.py)::(test_\w+)", page("docs/behaviours.md")))
    assert named
    for file, test in named:
        tree = ast.parse(page(f"tests/{file}"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in names, f"{file}::{test}"


def test_the_readme_is_short():
    assert len(page("README.md").splitlines()) <= 150


def test_every_variable_that_is_set_has_its_place_in_the_page_on_speed():
    text = page("docs/speed.md")
    assert [setting.name for setting in settings.SETTINGS if f"`{setting.name}`" not in text] == []
