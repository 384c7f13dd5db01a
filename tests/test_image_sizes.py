"""--progressive_image_size: training images that grow by epoch."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import tiny
from input_data import create_config, read_batches, read_train, write_folder
from processes import ROOT, run, trainers
from test_plan import make_plan

from trainer.config import Config, DataConfig
from trainer.distributed import Worker
from trainer.errors import ConfigError
from trainer.inputs.dataset import open_dataset
from trainer.run import setup

FLAGS = [*tiny.FLAGS, "--lr_schedule=constant", "--warmup_epochs=0", "--deterministic"]


@pytest.mark.parametrize(
    "sizes",
    ["0", "0:8", "1:8,2:16", "0:8,0:16", "0:8.5,2:16", "0:0,1:16", "0:8,x:16", "0:16,1:8"],
)
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ConfigError, match="--progressive_image_size: must be EPOCH:SIZE"):
        DataConfig(image_size=16, progressive_image_size=sizes)


@pytest.mark.parametrize(
    ("sizes", "flag"),
    [
        ({"image_size": 16}, "image_size"),
        ({"progressive_image_size": "0:16,3:64"}, "progressive_image_size"),
        ({"eval_image_size": 16}, "eval_image_size"),
    ],
)
def test_a_size_that_is_too_small_is_told_by_its_flag(sizes, flag):
    data = DataConfig(**{"image_size": 64, **sizes})
    with pytest.raises(ConfigError, match=f"--{flag}: must be at least 32 for resnet_v2_50, got "):
        setup._check_image_sizes(Config(data=data))


def test_a_size_begins_with_its_epoch():
    plan = make_plan(epochs=10.0)  # An epoch has 22.45 steps.
    sizes = DataConfig(progressive_image_size="0:128,2:176,4.5:224").sizes_by_epoch
    of_steps = [plan.value_at(step, sizes) for step in range(plan.total_steps)]
    assert of_steps == [128] * 45 + [176] * (102 - 45) + [224] * (plan.total_steps - 102)
    assert DataConfig(image_size=32).sizes_by_epoch == ((0.0, 32),)


def test_what_is_cached_or_bad_stays_so_when_the_size_changes(tmp_path):
    write_folder(tmp_path / "train", {"a": 7})
    (tmp_path / "train" / "a" / "9.png").write_bytes(b"none")
    config = create_config(data_dir=str(tmp_path), cache="encoded", max_bad_examples=1)
    data = open_dataset(config)
    assert read_train(data, steps=4)[0].images.shape == (4, 8, 8, 3)
    for path in (tmp_path / "train" / "a").iterdir():
        path.write_bytes(b"")
    batches, stream = read_batches(lambda: data.at_size(12).build_train(Worker(), seed=0), steps=4)
    assert batches[0].images.shape == (4, 12, 12, 3)
    assert stream.bad_examples() == 1


@pytest.mark.processes
def test_a_run_equals_runs_of_one_size_that_go_on_from_each_other(tmp_path):
    """An epoch has 11.25 steps: 8 px up to step 12, 12 px up to 23. Then with an end within."""
    alone, growing, stopped = (str(tmp_path / name) for name in ("alone", "growing", "stopped"))
    grows = [*FLAGS, "--progressive_image_size=0:8,1:12,2:16", "--checkpoint_every=12"]
    of_one_size = [*FLAGS, f"--logdir={alone}", "--eval_image_size=16"]
    *others, whole, done = trainers(
        [*of_one_size, "--image_size=8", "--steps=12"],
        [*of_one_size, "--image_size=12", "--steps=23"],
        [*of_one_size, "--image_size=16", "--steps=30"],
        [*grows, f"--logdir={growing}", "--steps=30", f"--result_json={tmp_path}/result.json"],
        [*grows, f"--logdir={stopped}", "--steps=17"],
    )
    for each in (*others, whole, done):
        assert each.returncode == 0, each.stderr
    assert "step 12: from here on, training images have 12 px" in whole.stdout
    assert "step 23: from here on, training images have 16 px" in whole.stdout
    assert "the run ends at epoch 1.5, before its images have 16 px" in done.stdout
    (done,) = trainers([*grows, f"--logdir={stopped}", "--steps=30", "--resume=must"])
    assert done.returncode == 0, done.stderr
    # Built for the size of its first step at once, not for another one before.
    assert done.stdout.count("building the graph for images of 16 px") == 1
    assert "building the graph for images of 12 px" not in done.stdout
    ours, theirs, resumed = (
        tf.train.load_checkpoint(f"{folder}/model.ckpt-30") for folder in (growing, alone, stopped)
    )
    for name in theirs.get_variable_to_shape_map():
        for each in (ours, resumed):
            np.testing.assert_array_equal(each.get_tensor(name), theirs.get_tensor(name), name)
    # Also those between the last report and a change of the size.
    lines = (tmp_path / "growing" / "metrics.jsonl").read_text().splitlines()
    logged = [line["step"] for line in map(json.loads, lines) if "train/loss" in line]
    assert logged == list(range(1, 31))
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    # Parts of 12, 11 and 7 steps: each warms up.
    assert (result["warmup_steps"], result["timed_steps"]) == (6 + 5 + 3, 16)
    assert result["eval"]["count"] == tiny.VALIDATION_EXAMPLES


@pytest.mark.processes
def test_status_tells_no_checkpoint_where_the_size_changes_without_one(tmp_path):
    """It changes after step 12; the run fails at its last step, before it has saved any."""
    (tmp_path / "plan.json").write_text(
        json.dumps(
            {"queue": [{"phase": "last step", "rank": 0, "action": "exception"}], "fired": 0}
        )
    )
    command = [sys.executable, str(ROOT / "tests" / "programs" / "faulty_trainer.py")]
    grows = ["--progressive_image_size=0:8,1:16", "--steps=15", "--checkpoint_every=0"]
    done = run(
        [*command, *FLAGS, *grows, f"--logdir={tmp_path}/run"],
        FAULT_PLAN=str(tmp_path / "plan.json"),
        LAST_STEP="15",
    )
    assert "step 12: from here on, training images have 16 px" in done.stdout
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 0)
