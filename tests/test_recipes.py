"""The recipes: each is read, described, and takes steps at its own image size."""

import json
import re

import pytest
from absl import flags as absl_flags
from processes import ROOT, trainers

from flags import command_line
from trainer.errors import ConfigError

RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.flags"))
NAMES = [path.stem for path in RECIPES]
STEPS = 20


def parse(path):
    words = ["trainer", f"--flagfile={path}", "--dataset=synthetic"]
    return command_line.parse(words, absl_flags.FlagValues())


def test_the_recipes_are_those_of_the_page():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"scripts/recipes/(\w+)\.flags", page)
    assert set(re.findall(r"scripts/recipes/(\w+)\.flags", page)) == set(NAMES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_says_where_it_is_from_and_how_many_images_a_step_has(path):
    text = path.read_text(encoding="utf-8")
    config = parse(path)
    if path.stem == "digits":
        return
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert re.search(r"reports? a? ?(top-1 of )?[\d.]+ %", " ".join(text.split("\n# ")))
    workers, each, total = (
        int(number.replace(",", ""))
        for number in re.search(r"(\d+) x (\d+) = ([\d,]+) images per step", text).groups()
    )
    assert workers * each == total
    data, update = config.data, config.optimizer
    assert data.batch_size * update.accumulate_steps in (each, total)


@pytest.mark.slow
@pytest.mark.processes
def test_every_recipe_takes_steps_and_is_described(tmp_path):
    """With two images per step, at its real image size, and a small network, which starts soon."""
    runs = [
        [
            f"--flagfile={path}",
            *("--dataset=synthetic", "--num_classes=100", "--batch_size=2"),
            *(f"--steps={STEPS}", f"--result_json={tmp_path}/{path.stem}.json"),
            "--model=tiny:network",
        ]
        for path in RECIPES
    ]
    descriptions = [
        [
            *("--mode=describe", f"--flagfile={path}", "--model=tiny:network"),
            f"--result_json={tmp_path}/d_{path.stem}.json",
        ]
        for path in RECIPES
    ]
    for done in trainers(*runs, *descriptions):
        assert done.returncode == 0, done.stdout + done.stderr
    for path in RECIPES:
        config = parse(path)
        result = json.loads((tmp_path / f"{path.stem}.json").read_text())
        assert result["result"]["steps"] == STEPS
        assert result["config"]["data"]["image_size"] == config.data.image_size
        described = json.loads((tmp_path / f"d_{path.stem}.json").read_text())["result"]
        assert described["training_bytes"]["activations"] > 0
        batch_size = config.data.batch_size * config.optimizer.accumulate_steps
        if config.run.epochs is not None:
            assert described["steps"] == pytest.approx(
                config.run.epochs * 1_281_167 / batch_size, abs=1
            )


@pytest.mark.parametrize(
    ("in_file", "typed", "steps", "epochs"),
    [
        ("--epochs=90", ["--steps=20"], 20, None),
        ("--steps=20", ["--epochs=90"], None, 90.0),
        ("--epochs=90", [], None, 90.0),
        ("--epochs=90", ["--epochs=3"], None, 3.0),
    ],
)
def test_a_length_beside_a_recipe_takes_the_place_of_the_recipes(
    tmp_path, in_file, typed, steps, epochs
):
    (tmp_path / "recipe").write_text(f"{in_file}\n--seed=4\n")
    for words in (
        [f"--flagfile={tmp_path}/recipe", *typed],
        [*typed, f"--flagfile={tmp_path}/recipe"],
    ):
        if typed and in_file.split("=")[0] == typed[0].split("=")[0] and words[0] in typed:
            continue  # Of one flag, the last value counts.
        config = command_line.parse(["", *words], absl_flags.FlagValues())
        assert (config.run.steps, config.run.epochs, config.run.seed) == (steps, epochs, 4)


def test_two_lengths_of_one_place_are_refused(tmp_path):
    (tmp_path / "recipe").write_text("--epochs=90\n--steps=3\n")
    for words in (["--epochs=90", "--steps=3"], [f"--flagfile={tmp_path}/recipe"]):
        with pytest.raises(ConfigError, match="--steps: must not be given with --epochs"):
            command_line.parse(["", *words], absl_flags.FlagValues())
