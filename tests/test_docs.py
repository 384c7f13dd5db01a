"""The pages in docs/ say what the code does: tags, tests, and the README's length."""

import ast
import re

from processes import ROOT
from test_telemetry import Recorder, create_log, step

from trainer.distributed import Group

EVERY_STEP = "Scalars at every step"


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def tags_of_section(text, title):
    """The first cells of a section's table."""
    _, _, section = text.partition(f"## {title}\n")
    section, _, _ = section.partition("\n## ")
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_the_table_has_each_tag_that_every_step_is_written_with():
    recorder = Recorder()
    log = create_log(Group(), recorder, images_per_step=1)
    log.add(step(1))
    log.add(step(2))  # The last one of a flush has more than every step: memory.
    log.flush()
    told = tags_of_section(page("docs/monitoring.md"), EVERY_STEP)
    assert len(told) == len(set(told))
    assert set(told) == set(recorder.steps[1])


def test_the_tests_that_hold_a_behaviour_are_there():
    named = set(re.findall(r"(test_\w+\.py)::(test_\w+)", page("docs/behaviours.md")))
    assert named
    for file, test in named:
        tree = ast.parse(page(f"tests/{file}"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in names, f"{file}::{test}"


def test_the_readme_is_short():
    assert len(page("README.md").splitlines()) <= 150
