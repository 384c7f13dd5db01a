"""Averages of weights in evaluations and exports of a run: real command lines."""

import json

import pytest
import tiny
from processes import trainer, trainers

from trainer.checkpoints import folder_store

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with averages, then its averages evaluated, exported, and its weights exported."""
    path = tmp_path_factory.mktemp("averages")
    logdir = f"--logdir={path}/run"
    steps = ["--steps=24", "--warmup_epochs=0", "--ema_decay=0.99", "--eval_every_epochs=0"]
    ends = trainers(
        [*tiny.FLAGS, *steps, logdir],
        ["--mode=evaluate", *tiny.FLAGS, logdir, "--init_averages"],
        ["--mode=export", *tiny.FLAGS, logdir, "--init_averages", f"--export_dir={path}/averages"],
        ["--mode=export", *tiny.FLAGS, logdir, f"--export_dir={path}/weights"],
    )
    for done in ends:
        assert done.returncode == 0, done.stdout + done.stderr
    return path


def evaluations(folder):
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if {"eval/top1", "eval/ema_top1"} & line.keys()]


def test_averages_that_are_evaluated_are_not_logged_as_the_weights(folder):
    of_run, of_averages = evaluations(folder)
    assert of_run["eval/loss"] != of_run["eval/ema_loss"]  # So that the two can be told apart.
    assert not {"eval/top1", "eval/loss"} & of_averages.keys()
    assert of_averages["eval/ema_top1"] == of_run["eval/ema_top1"]
    assert of_averages["eval/ema_loss"] == pytest.approx(of_run["eval/ema_loss"], rel=1e-6)


def test_an_exported_networks_card_has_its_own_accuracy(folder):
    of_run, _ = evaluations(folder)
    for name, is_averaged, tag in (
        ("averages", True, "eval/ema_loss"),
        ("weights", False, "eval/loss"),
    ):
        card = json.loads((folder / name / "model.json").read_text())["checkpoint"]
        assert card["averaged_weights"] is is_averaged
        assert card["evaluation"]["loss"] == pytest.approx(of_run[tag], rel=1e-6)


def test_a_run_does_not_end_at_its_goal_without_a_checkpoint(tmp_path):
    """The disk is full between two checkpoints: as at a run's last step, that is a failure."""
    network = "def network(*args, **kwargs):\n    return tiny.network(*args, **kwargs)\n"
    full = (
        "import tiny\n\nfrom trainer.checkpoints import folder_store\n\n\n"
        "def fail(*args, **kwargs):\n    raise OSError(28, 'No space left on device')\n\n\n"
        f"folder_store.FolderStore.save = fail\n\n\n{network}"
    )
    assert hasattr(folder_store.FolderStore, "save")
    (tmp_path / "full.py").write_text(full)
    flags = [flag for flag in tiny.FLAGS if not flag.startswith("--model")]
    goal = ["--steps=60", "--eval_every_epochs=0.5", "--stop_at_top1=0.3"]
    goal += ["--base_learning_rate=3", "--warmup_epochs=0", f"--logdir={tmp_path}/run"]
    # Plug-ins of the current folder are found.
    done = trainer(*flags, "--model=full:network", *goal, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "could not be saved" in done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
