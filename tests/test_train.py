"""Whole runs of `python -m trainer`: one process, and two under horovodrun, read back from disk."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import fixed_tags
import numpy as np
import pytest
import tensorflow as tf
import tiny
from processes import ROOT, environment, horovodrun, run, trainers
from tensorboard.backend.event_processing import event_accumulator

FLAGS = tiny.FLAGS


def read_events(logdir):
    """Every scalar in a folder's event files: {tag: {step: value}}."""
    events = event_accumulator.EventAccumulator(str(logdir), {"scalars": 0})
    events.Reload()
    return {
        tag: {point.step: point.value for point in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.processes
class TestRun:
    def test_every_step_of_every_tag_is_in_tensorboard(self, run):
        scalars = read_events(run)
        assert set(scalars) >= fixed_tags.EVERY_STEP | fixed_tags.OF_FEW_CLASSES
        for tag in fixed_tags.EVERY_STEP:
            assert sorted(scalars[tag]) == list(range(1, 61)), tag

    def test_metrics_jsonl_holds_the_same_numbers(self, run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scalars = read_events(run)
        seen = 0
        for line in lines:
            for tag, value in line.items():
                if tag not in ("step", "wall_time"):
                    assert scalars[tag][line["step"]] == pytest.approx(value, rel=1e-6)
                    seen += 1
        assert seen == sum(len(points) for points in scalars.values())

    def test_the_result_says_what_the_events_say(self, run):
        result = read_json(run / "result.json")["result"]
        step_times = read_events(run)["perf/step_time_ms"]
        timed = [step_times[step] for step in range(result["warmup_steps"] + 1, 61)]
        images = result["global_batch_size"] * len(timed)
        assert result["images_per_sec"] == pytest.approx(images / (sum(timed) / 1000), rel=1e-3)
        assert result["images_per_sec_per_worker"] == result["images_per_sec"] / 2
        assert result["step_time_ms"]["mean"] == pytest.approx(np.mean(timed), rel=1e-3)
        assert result["step_time_ms"]["p50"] == pytest.approx(np.median(timed), rel=1e-3)
        assert (result["steps"], result["workers"], result["global_batch_size"]) == (60, 2, 16)
        assert result["epochs"] == pytest.approx(60 * 16 / tiny.TRAIN_EXAMPLES)

    def test_each_steps_rate_is_images_over_its_time(self, run):
        scalars = read_events(run)
        for step, step_time_ms in scalars["perf/step_time_ms"].items():
            rate = scalars["perf/images_per_sec"][step]
            assert rate == pytest.approx(16 / (step_time_ms / 1000), rel=1e-4)

    def test_it_learned_and_counted_every_validation_example(self, run):
        evaluation = read_json(run / "result.json")["result"]["eval"]
        assert evaluation["count"] == tiny.VALIDATION_EXAMPLES
        assert evaluation["top1"] > 0.6

    def test_only_rank_0_talks_and_writes(self, run):
        console = (run / "console.txt").read_text(encoding="utf-8")
        assert re.search(r"\[0\]<stdout>:step 7/60 +1\.24 ", console)
        assert "[1]<stdout>" not in console
        assert len(list(run.glob("events.out.tfevents.*"))) == 1

    def test_status_and_checkpoints(self, run):
        assert read_json(run / "status.json") == {"state": "finished", "step": 60, "reason": None}
        assert tf.train.latest_checkpoint(str(run)) == f"{run}/model.ckpt-60"
        assert sorted(path.name for path in run.glob("model.ckpt-*.index")) == [
            "model.ckpt-25.index",
            "model.ckpt-50.index",
            "model.ckpt-60.index",
        ]
        assert tf.train.load_variable(f"{run}/model.ckpt-60", "global_step") == 60

    def test_one_process_evaluates_what_two_trained(self, run, tmp_path):
        copy = shutil.copytree(run, tmp_path / "copy")
        flags = [*FLAGS, "--mode=evaluate", f"--logdir={copy}", f"--result_json={tmp_path}/e.json"]
        # Once the run has gone on, an older checkpoint's evaluation would hide the newer ones.
        other = shutil.copytree(run, tmp_path / "other")
        with open(other / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 70, "eval/top1": 0.9}\n')
        written = sorted(other.glob("events.*"))
        done, later = trainers(flags, [*flags[:-2], f"--logdir={other}"])
        assert done.returncode == 0, done.stderr
        ours = read_json(tmp_path / "e.json")["result"]
        expected = read_json(run / "result.json")["result"]["eval"]
        assert ours["count"] == expected["count"]
        assert ours["top1"] == expected["top1"]
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        # It shows beside the training, as the same run.
        before, after = read_events(run), read_events(copy)
        assert after["eval/top1"] == {**before["eval/top1"], 60: pytest.approx(ours["top1"])}
        assert after["train/loss"] == before["train/loss"]
        lines = (copy / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["eval/loss"] == ours["loss"]
        assert lines[:-1] == (run / "metrics.jsonl").read_text().splitlines()
        assert later.returncode == 0, later.stderr
        assert f"top-1 {ours['top1']:.4f}" in later.stdout
        assert "not in TensorBoard, which has the evaluation after step 70 already" in later.stdout
        assert sorted(other.glob("events.*")) == written

    def test_any_number_of_workers_tells_the_same_of_each_example(self, run, tmp_path):
        told, tables = [], []
        for workers, batch_size in ((1, 7), (3, 5)):
            flags = [
                *("--mode=evaluate", f"--init_checkpoint={run}/best", "--dataset=tiny:dataset"),
                *(f"--result_json={tmp_path}/e.json", f"--predictions_csv={tmp_path}/e.csv"),
            ]
            flags.append(f"--batch_size={batch_size}")
            joined = ["-m", "trainer", *flags]
            done = horovodrun(workers, joined) if workers > 1 else trainers(flags)[0]
            assert done.returncode == 0, done.stderr
            told.append(read_json(tmp_path / "e.json")["result"])
            with open(tmp_path / "e.csv", encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            columns = ("file", "label", *(f"class_{place}" for place in range(1, 5)))
            tables.append([[row[column] for column in columns] for row in rows])
        one, three = told
        assert len(tables[0]) == tiny.VALIDATION_EXAMPLES
        assert tables[0] == tables[1]
        for field in ("count", "top1", "top5", "classes", "confusion"):
            assert one[field] == three[field], field
        assert three["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert three["calibration_error"] == pytest.approx(one["calibration_error"], abs=1e-6)

    def test_workers_whose_checkpoints_are_described_otherwise_do_not_evaluate(self, run, tmp_path):
        """Each worker has its own disk; on that of the second, the model.json is of another net."""
        for rank in range(2):
            shutil.copytree(run / "best", tmp_path / str(rank))
        model = tmp_path / "1" / "model.json"
        model.write_text(model.read_text().replace('"image_size": 16', '"image_size": 24'))
        code = (
            "import os; from trainer import __main__ as program\n"
            f"os.chdir('{tmp_path}/' + os.environ['HOROVOD_RANK']); program.main()"
        )
        done = horovodrun(
            2, ["-c", code, "--mode=evaluate", "--dataset=tiny:dataset", "--init_checkpoint=."]
        )
        assert done.returncode != 0
        assert (
            "slim-horovod: worker 1 of 2 does not run what worker 0 does: "
            "flag --image_size is 24, not 16."
        ) in done.stderr
        assert "top-1" not in done.stdout

    def test_started_again_it_says_that_it_is_complete_and_keeps_what_it_had(self, run):
        kept = [(run / name).read_text() for name in ("metrics.jsonl", "checkpoints.json")]
        flags = [*FLAGS, "--steps=60", f"--logdir={run}", "--crop_fraction=0.5"]
        done = horovodrun(2, ["-m", "trainer", *flags])
        assert done.returncode == 0, done.stderr
        assert "is complete already" in done.stdout
        assert "exit with status code" not in done.stdout + done.stderr  # 0, on both ranks.
        assert [(run / name).read_text() for name in ("metrics.jsonl", "checkpoints.json")] == kept

    def test_a_mistake_is_told_once_and_ends_all_workers(self, tmp_path):
        done = horovodrun(2, ["-m", "trainer", "--data_dir=/nowhere", f"--logdir={tmp_path}"])
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if "slim-horovod:" in line]
        assert len(lines) == 1
        assert "--data_dir: must be a folder that exists, got '/nowhere'" in lines[0]


@pytest.mark.processes
def test_when_one_worker_ends_the_others_say_so_in_a_line(tmp_path):
    images = tmp_path / "images"
    split = tiny.dataset(None).train
    for number, label in enumerate(split.labels):
        (images / str(label)).mkdir(parents=True, exist_ok=True)
        (images / str(label) / f"{number}.png").write_bytes(split.read(number))
    (images / "0" / "broken.png").write_text("no image")
    flags = [*FLAGS, "--dataset=folder", f"--data_dir={images}", "--validation_fraction=0.1"]
    done = horovodrun(
        2, ["-m", "trainer", *flags, "--steps=12", "--eval_every_epochs=0", f"--logdir={tmp_path}"]
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "slim-horovod:" in line]
    reasons = [line for line in lines if "broken.png: a bad image: neither JPEG, PNG, " in line]
    others = [line for line in lines if "since another one has" in line]
    assert len(reasons) == 1
    # horovodrun ends the other worker by SIGTERM, perhaps before it has said its line, or before
    # it has heard of the first one's end: then it tells of the signal, too.
    signals = [line for line in lines if "the run stops after this step" in line]
    assert len(others) <= 1
    assert len(signals) <= 1
    assert len(lines) == len(reasons) + len(others) + len(signals)
    assert not [line for line in done.stderr.splitlines() if "]<stderr>:Traceback" in line]
    if any("[0]<stderr>" in line for line in lines):
        assert read_json(tmp_path / "status.json")["state"] == "failed"


@pytest.mark.processes
def test_a_resumed_run_shows_each_step_once_and_ends_as_a_straight_one(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    common = [*FLAGS, "--lr_schedule=constant", "--warmup_epochs=0", "--deterministic"]
    # A rule that counts its updates, and averages of all weights.
    common += ["--optimizer=lamb", "--ema_decay=0.9", "--clip_global_norm=1"]
    # As if one had been killed at step 12, with the checkpoint of step 8 as the newest.
    for done in trainers(
        [*common, "--steps=20", f"--logdir={straight}"],
        [*common, "--steps=12", f"--logdir={stopped}"],
        [*common, "--steps=8", f"--logdir={tmp_path}/eight"],
    ):
        assert done.returncode == 0, done.stderr
    for path in stopped.glob("model.ckpt-12*"):
        path.unlink()
    for path in (tmp_path / "eight").glob("model.ckpt-8*"):
        path.rename(stopped / path.name)
    (done,) = trainers([*common, "--steps=20", f"--logdir={stopped}", "--resume=must"])
    assert done.returncode == 0, done.stderr
    assert f"resumed from {stopped}/model.ckpt-8" in done.stdout
    steps = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in steps if "train/loss" in line]
    assert trained == list(range(1, 21))
    assert sorted(read_events(stopped)["train/loss"]) == trained
    (evaluated,) = (line for line in steps if "eval/top1" in line and line["step"] == 20)
    assert {"eval/ema_top1", "eval/ema_loss"} <= evaluated.keys()
    # As after a kill between an evaluation's line and its note in the manifest.
    manifest = read_json(stopped / "checkpoints.json")
    noted = manifest["checkpoints"][-1]["top1"]
    manifest["checkpoints"][-1]["top1"] = None
    (stopped / "checkpoints.json").write_text(json.dumps(manifest))
    (again,) = trainers([*common, "--steps=20", f"--logdir={stopped}"])
    assert "step 20: evaluation: top-1" in again.stdout, again.stderr
    assert read_json(stopped / "checkpoints.json")["checkpoints"][-1]["top1"] == noted
    assert (stopped / "metrics.jsonl").read_text().count('"eval/top1"') == sum(
        "eval/top1" in line for line in steps
    )
    assert len(read_events(stopped)["eval/top1"]) == sum("eval/top1" in line for line in steps)
    ours = tf.train.load_checkpoint(f"{stopped}/model.ckpt-20")
    theirs = tf.train.load_checkpoint(f"{straight}/model.ckpt-20")
    for name in theirs.get_variable_to_shape_map():
        np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name), err_msg=name)


@pytest.mark.processes
def test_a_run_ends_where_an_evaluation_reaches_its_goal(tmp_path):
    """Between two checkpoints; the same command then finds it complete, another goal goes on."""
    logdir = tmp_path / "run"
    flags = [
        *(*FLAGS, "--steps=60", "--checkpoint_every=1000", "--eval_every_epochs=0.5"),
        *(f"--logdir={logdir}", f"--result_json={tmp_path}/result.json", "--stop_at_top1=0.5"),
    ]
    (first,) = trainers(flags)
    assert first.returncode == 0, first.stderr
    steps = read_json(tmp_path / "result.json")["result"]["steps"]
    assert 0 < steps < 60
    assert "reaches --stop_at_top1; the run ends" in first.stdout
    finished = {"state": "finished", "step": steps, "reason": None}
    assert read_json(logdir / "status.json") == finished
    (entry,) = read_json(logdir / "checkpoints.json")["checkpoints"]
    assert entry["step"] == steps
    assert entry["top1"] >= 0.5
    again, further = trainers(flags, [*flags[:-1], "--stop_at_top1=1"])
    assert again.returncode == 0, again.stderr
    assert "it is complete already" in again.stdout
    assert read_json(tmp_path / "result.json")["result"]["steps"] > steps
    assert f"goes on after step {steps}" in further.stdout


OF_OTHERS = ("flags.py", "trainer.py", "models/__init__.py", "tensorflow_hub/notes.txt")


@pytest.mark.processes
def test_what_is_in_the_current_folder_is_not_taken_for_this_program(tmp_path):
    """But plug-ins there are found, under every launcher."""
    for name in OF_OTHERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('of another program')\n")
    source = Path(tiny.__file__).read_text(encoding="utf-8")
    (tmp_path / "my_nets.py").write_text(source, encoding="utf-8")
    flags = [flag.replace("tiny:", "my_nets:") for flag in FLAGS]
    python = [sys.executable, "-m", "trainer"]
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    supervise = [sys.executable, str(ROOT / "scripts" / "supervise.py"), "--max_restarts=0", "--"]
    logdir = f"--logdir={tmp_path}/log"
    for command in (
        ["slim-horovod", "--mode=describe", *flags],
        [*python, "--version"],
        [*supervise, "horovodrun", "-np", "2", *python, *flags, "--steps=3", logdir],
    ):
        done = run(command, cwd=tmp_path, env=env)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "of another program" not in done.stdout + done.stderr
    assert read_json(tmp_path / "log" / "status.json")["state"] == "finished"


@pytest.mark.processes
def test_wrong_input_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    cases = {
        ("--model=resnet_v2_51",): "--model: must be one of resnet_v2_50, ",
        ("--dataset=imagenet",): "--dataset: must be synthetic, tfrecord, folder or ",
        ("--model=resnet_v2_50", "--image_size=16"): "--image_size: must be at least 32 for ",
        ("--num_classes=3",): "--num_classes: must be at least 4, ",
        ("--dataset=folder", f"--data_dir={tmp_path}/empty"): f"{tmp_path}/empty",
        (f"--logdir={tmp_path}/file",): "--logdir: must be writable, got ",
        (f"--logdir={tmp_path}/other", "--optimizer=adam"): (
            "another --logdir or --init_checkpoint. Flags that have changed since: "
            "optimizer momentum -> adam"
        ),
        (f"--logdir={tmp_path}/other", "--resume=never"): "--resume: must not be never where ",
        ("--mode=evaluate", f"--logdir={tmp_path}/other", "--num_classes=7"): (
            f"--num_classes: must be 4, as in {tmp_path}/other/model.ckpt-2, got 7"
        ),
        (f"--init_checkpoint={tmp_path}/none",): "--init_checkpoint: must be the prefix of a ",
        ("--mode=evaluate", "--dataset=synthetic", "--follow", f"--logdir={tmp_path}/no"): (
            "--data_dir: must be given with --follow before the run has begun"
        ),
    }
    right, known, kept_nowhere, *wrong = trainers(
        [*FLAGS, "--steps=2", f"--logdir={tmp_path}/other"],
        ["--mode=evaluate", f"--logdir={tmp_path}/other"],
        ["--model=tiny:network", "--image_size=16", "--batch_size=2", "--num_classes=4"],
        *([*FLAGS, "--steps=1", *flags] for flags in cases),
    )
    assert right.returncode == 0, right.stderr
    assert f"logs: {tmp_path}/other" in right.stdout
    assert known.returncode == 0, known.stderr
    assert f"({tiny.VALIDATION_EXAMPLES} images)" in known.stdout
    assert kept_nowhere.returncode == 0, kept_nowhere.stderr
    assert "no --logdir: nothing of this run will be kept" in kept_nowhere.stdout
    assert "give --data_dir=DIR to train on images" in kept_nowhere.stdout
    assert "finished after 100 steps; " in kept_nowhere.stdout
    for done, (flags, line) in zip(wrong, cases.items(), strict=True):
        assert done.returncode == 2, (flags, done.stderr)
        lines = done.stderr.splitlines()
        assert len(lines) == 1, (flags, done.stderr)
        assert lines[0].startswith("slim-horovod: ")
        assert line in lines[0]
