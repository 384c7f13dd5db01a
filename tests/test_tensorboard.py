"""Real runs as TensorBoard's own server tells them, asked over HTTP."""

import json
import os
import re
import sys

import fixed_tags
import numpy as np
import pytest
import tensorboard_server
import tensorflow as tf
import tiny
from processes import run as run_process
from processes import trainers
from tensorflow.core.util import event_pb2

from trainer.inputs.sources import tfrecord
from trainer.telemetry.writers.run_writer import create_writer

pytestmark = pytest.mark.processes

SLOW = [*tiny.FLAGS[1:], "--model=slow:network", "--deterministic", "--checkpoint_every=30"]
STEPS = list(range(1, 61))


@pytest.fixture(scope="module")
def logs(tmp_path_factory, run):
    """A folder with four runs in it."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "whole").symlink_to(run)
    stopped = [*SLOW, "--steps=60", "--log_every=1", f"--logdir={folder}/stopped"]
    (ended,) = trainers(stopped, END_AT_STEP="37")
    assert ended.returncode == 1
    before = (folder / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(before[-1])["step"] >= 35
    (done,) = trainers([*stopped, "--resume=must"])
    assert done.returncode == 0, done.stderr
    for steps in (9, 5):  # The first ended before its first checkpoint: the second starts afresh.
        writer = create_writer(f"{folder}/restarted", rank=0, first_step=1)
        for step in range(1, steps + 1):
            writer.write(step, {"train/loss": steps + step / 10}, wall_time=1000.0 + step)
        writer.close()
    writer = create_writer(f"{folder}/evaluated", rank=0, first_step=1)
    for step in (10, 20, 30, 40):
        writer.write(step, {"eval/top1": step / 100}, wall_time=1000.0 + step)
        writer.flush()
        if step == 20:  # Another process evaluates the checkpoint of this step.
            beside = create_writer(f"{folder}/evaluated", rank=0)
            beside.write(step, {"eval/top1": step / 100}, wall_time=1000.0 + step)
            beside.close()
    writer.close()
    return folder


def is_loaded(server):
    """Returns whether the last that was written of each run has been read."""
    found = server.get("plugin/scalars/tags")
    return (
        {"whole", "stopped", "restarted", "evaluated"} <= set(found)
        and "perf/mean_images_per_sec" in found["whole"]
        and "perf/mean_images_per_sec" in found["stopped"]
    )


@pytest.fixture(scope="module", params=["fast", "python"])
def server(request, logs):
    """The server, with its usual way of reading logs and with the older one."""
    flags = ["--load_fast=false"] if request.param == "python" else ["--load_fast=true"]
    with tensorboard_server.serve(logs, *flags, ready=is_loaded) as running:
        yield running


def test_every_tag_has_every_step_once(server):
    tags = server.get("plugin/scalars/tags")["whole"]
    assert set(tags) >= fixed_tags.EVERY_STEP | fixed_tags.OF_FEW_CLASSES
    for tag in fixed_tags.EVERY_STEP:
        assert [step for step, _ in server.scalars("whole", tag)] == STEPS, tag


def test_metrics_jsonl_holds_the_same_numbers(server, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for tag in sorted(fixed_tags.EVERY_STEP | {"eval/top1", "perf/evaluation_ms"}):
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        found = server.scalars("whole", tag)
        assert [step for step, _ in found] == [step for step, _ in expected], tag
        values = [value for _, value in found]
        np.testing.assert_allclose(values, [value for _, value in expected], rtol=1e-6)


def test_a_run_that_was_stopped_at_37_and_went_on_from_30_shows_each_step_once(server):
    for tag in fixed_tags.EVERY_STEP:
        assert [step for step, _ in server.scalars("stopped", tag)] == STEPS, tag


def test_a_run_that_started_afresh_shows_its_new_steps_only(server):
    expected = [(step, pytest.approx(5 + step / 10)) for step in range(1, 6)]
    assert server.scalars("restarted", "train/loss") == expected


def test_an_evaluation_beside_a_run_hides_none_of_its_own(server):
    shown = dict(server.scalars("evaluated", "eval/top1"))
    assert shown == pytest.approx({10: 0.1, 20: 0.2, 30: 0.3, 40: 0.4})


def test_hparams_compare_the_runs(server):
    experiment = server.post("plugin/hparams/experiment", {"experimentName": ""})
    columns = [info["name"] for info in experiment["hparamInfos"]]
    assert columns[:4] == ["base_learning_rate", "epochs", "optimizer", "workers"]
    names = set(columns)
    assert names >= {"model", "batch_size", "base_learning_rate", "workers", "precision"}
    metrics = [info["name"] for info in experiment["metricInfos"]]
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS"],
        "colParams": [{"metric": name, "includeInResult": True} for name in metrics]
        + [{"hparam": name, "includeInResult": True} for name in sorted(names)],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.post("plugin/hparams/session_groups", request)["sessionGroups"]
    runs = {group["sessions"][0]["name"]: group for group in groups}
    assert set(runs) == {"whole", "stopped"}
    assert runs["whole"]["hparams"]["workers"] == 2
    assert runs["stopped"]["hparams"]["workers"] == 1
    assert runs["whole"]["hparams"]["model"] == "tiny:network"
    found = {each["name"]["tag"]: each for each in runs["whole"]["metricValues"]}
    assert found["eval/top1"]["value"] == server.scalars("whole", "eval/top1")[-1][1]
    assert found["perf/mean_images_per_sec"]["value"] > 0


def test_texts_tell_configuration_versions_and_command_line(server):
    tags = server.get("plugin/text/tags")["whole"]
    assert len(tags) == 4
    pages = {tag: server.get("plugin/text/text", run="whole", tag=tag)[0]["text"] for tag in tags}
    text = "\n".join(pages.values())
    assert "<strong>--batch_size</strong></td>\n<td><code>8</code></td>" in text
    assert "tensorflow version" in text
    assert tf.__version__ in text
    assert "<code>-m</code> <code>trainer</code>" in text
    assert "<td><code>bottom right</code></td>\n<td>26</td>\n<td>9</td>" in text


def test_images_are_there(server):
    tags = server.get("plugin/images/tags")["whole"]
    assert set(tags) == {"inputs/augmented", "eval/confusion", "eval/misclassified"}
    (sample,) = server.get("plugin/images/images", run="whole", tag="inputs/augmented", sample=0)
    assert sample["step"] == 0


def test_the_custom_page_names_tags_that_are_there(server):
    layout = server.get("plugin/custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    tags = [tag for chart in charts for tag in chart["multiline"]["tag"]]
    drawn = set()
    for tag in tags:
        answer = server.get("plugin/custom_scalars/scalars", run="whole", tag=tag)
        assert answer["regex_valid"]
        drawn |= set(answer["tag_to_events"])
    assert drawn >= {"perf/images_per_sec", "perf/slowest_worker_step_ms", "eval/top1"}
    missing = {tag.strip("^$") for tag in tags} - drawn
    averaged = {"eval/ema_top1", "eval/ema_loss"}  # There are none; 4 classes; not run.
    assert missing == {"eval/top5", "benchmark/train_step/step_time_ms", *averaged}


def test_the_graph_and_histograms_are_there(server):
    assert server.get("plugin/graphs/info")["whole"]["run_graph"]
    graph = server.get("plugin/graphs/graph", run="whole")
    assert "library {" not in graph  # Its boxes would leave no room for the graph's.
    first = {name.partition("/")[0] for name in re.findall(r'^  name: "([^"]+)"', graph, re.M)}
    of_network = {"conv1", "conv2", "pool", "logits"}
    others = {"Flatten", "Cast"}  # The network's author gave these no scope.
    assert of_network < first
    assert {name for name in first if re.sub(r"_\d+$", "", name) not in of_network | others} == {
        *("inputs", "losses", "gradients", "gradient", "update", "loss_scale", "global_step"),
        *("urgent", "start", "save", "evaluation"),
    }
    tags = server.get("plugin/histograms/tags")["whole"]
    assert {"gradient/conv1/weights", "weight/conv1/weights"} <= set(tags)
    points = server.get("plugin/histograms/histograms", run="whole", tag="weight/conv1/weights")
    assert [point[1] for point in points] == [20, 40, 60]
    for _, _, buckets in points:
        assert sum(count for _, _, count in buckets) == 8 * 3 * 3 * 3


def test_with_the_disk_full_from_step_20_on_the_weights_are_the_same(logs, tmp_path):
    """RLIMIT_FSIZE is what the event file had at step 20; checkpoints are smaller."""
    (events,) = sorted((logs / "stopped").glob("events.out.tfevents.*"))[:1]
    limit = size_at_step(events, 20)
    flags = [*SLOW, "--steps=60", "--log_every=1", f"--logdir={tmp_path}"]
    command = ["prlimit", f"--fsize={limit}", sys.executable, "-m", "trainer", *flags]
    done = run_process(command)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert len(warnings) == 1, done.stderr
    assert "training goes on" in warnings[0]
    (cut,) = tmp_path.glob("events.out.tfevents.*")
    assert os.path.getsize(cut) == limit
    ours = tf.train.load_checkpoint(f"{tmp_path}/model.ckpt-60")
    theirs = tf.train.load_checkpoint(f"{logs}/stopped/model.ckpt-60")
    for name in theirs.get_variable_to_shape_map():
        np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name), err_msg=name)


def size_at_step(path, step):
    """Returns how large an event file was when it got to a step."""
    for offset, data in tfrecord.scan(memoryview(path.read_bytes()), str(path)):
        if event_pb2.Event.FromString(bytes(data)).step >= step:
            return offset
    raise AssertionError(f"{path} does not get to step {step}")
