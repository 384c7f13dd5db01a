"""--mllog against the rules that MLPerf's checker has for a ResNet run (training 4.0.0, open).

They are those of mlperf_logging 4.1.68, compliance_checker/training_4.0.0/: common.yaml,
open_common.yaml and open_resnet.yaml.
"""

import json

import pytest
import tiny
from test_plan import make_plan

from trainer.config import Config, OptimizerConfig
from trainer.telemetry.mllog import MLPerfLogFile

pytestmark = pytest.mark.processes

EXACTLY_ONE = (
    "submission_benchmark",
    "submission_org",
    "submission_platform",
    "submission_division",
    "submission_status",
    "init_stop",
    "run_start",
    "run_stop",
    "train_samples",
    "eval_samples",
    "gradient_accumulation_steps",
)
AT_LEAST_ONE = (
    "cache_clear",
    "init_start",
    "epoch_start",
    "epoch_stop",
    "eval_start",
    "eval_stop",
    "eval_accuracy",
)


@pytest.fixture(scope="module")
def lines(run):
    prefix = ":::MLLOG "
    text = (run / "mlperf.log").read_text().splitlines()
    assert all(line.startswith(prefix) for line in text)
    return [json.loads(line.removeprefix(prefix)) for line in text]


def keys(lines):
    return [line["key"] for line in lines]


def value(lines, key):
    (found,) = [line["value"] for line in lines if line["key"] == key]
    return found


def test_every_line_has_every_field(lines):
    for line in lines:
        assert set(line) == {"namespace", "time_ms", "event_type", "key", "value", "metadata"}
        assert {"file", "lineno"} <= set(line["metadata"])
    times = [line["time_ms"] for line in lines]
    assert times == sorted(times)


def test_every_key_is_there_as_often_as_it_must_be(lines):
    found = keys(lines)
    assert {key: found.count(key) for key in EXACTLY_ONE} == dict.fromkeys(EXACTLY_ONE, 1)
    assert set(AT_LEAST_ONE) <= set(found)


def test_the_order_is_set_up_run_end(lines):
    found = keys(lines)
    assert found.index("init_start") < found.index("init_stop") < found.index("run_start")
    assert found[-1] == "run_stop"
    assert lines[-1]["metadata"]["status"] == "success"
    assert found.index("run_start") < found.index("epoch_start")


def test_epochs_and_evaluations_are_intervals(lines):
    for name in ("epoch", "eval"):
        parts = [line for line in lines if line["key"] in (f"{name}_start", f"{name}_stop")]
        for start, stop in zip(parts[::2], parts[1::2], strict=True):
            assert (start["key"], start["event_type"]) == (f"{name}_start", "INTERVAL_START")
            assert (stop["key"], stop["event_type"]) == (f"{name}_stop", "INTERVAL_END")
            assert start["metadata"]["epoch_num"] == stop["metadata"]["epoch_num"]
    epochs = [line["metadata"]["epoch_num"] for line in lines if line["key"] == "epoch_start"]
    # 60 steps of 16 out of 90 examples are 10.7 epochs.
    assert epochs == list(range(1, 12))


def test_the_values_are_the_runs(lines, run):
    assert value(lines, "submission_benchmark") == "resnet"
    assert value(lines, "submission_division") == "open"
    assert value(lines, "global_batch_size") == 16
    assert value(lines, "train_samples") == tiny.TRAIN_EXAMPLES
    assert value(lines, "eval_samples") == tiny.VALIDATION_EXAMPLES
    accuracies = [line["value"] for line in lines if line["key"] == "eval_accuracy"]
    result = json.loads((run / "result.json").read_text())["result"]
    assert accuracies[-1] == result["eval"]["top1"]


def test_a_loop_that_begins_anew_is_the_same_run(tmp_path):
    """As with images of another size, in the middle of an epoch and at its end; then a rollback."""
    log = MLPerfLogFile(str(tmp_path / "mlperf.log"), Config())
    plan = make_plan(epochs=3.0)  # An epoch has 22.45 steps.
    for begins, ends in ((0, 10), (10, 23), (23, 50), (5, plan.total_steps)):
        log.begin(plan, done=begins, train_examples=1, eval_examples=1)
        for step in range(begins + 1, ends + 1):
            log.after_step(step)
    log.end()
    text = (tmp_path / "mlperf.log").read_text().splitlines()
    logged = [json.loads(line.removeprefix(":::MLLOG ")) for line in text]
    test_every_key_is_there_as_often_as_it_must_be(
        [*logged, *({"key": name} for name in ("eval_start", "eval_stop", "eval_accuracy"))]
    )
    epochs = [
        (line["key"], line["metadata"]["epoch_num"])
        for line in logged
        if line["key"].startswith("epoch_")
    ]
    expected = [1, 2, 3, 1, 2, 3]
    assert epochs == [(f"epoch_{what}", each) for each in expected for what in ("start", "stop")]


def test_a_rollback_from_the_last_step_opens_its_epoch_again(tmp_path):
    path = tmp_path / "mlperf.log"
    log = MLPerfLogFile(str(path), Config())
    plan = make_plan(epochs=1.0)
    for _ in range(2):
        log.begin(plan, done=plan.total_steps - 2, train_examples=1, eval_examples=1)
        for step in (plan.total_steps - 1, plan.total_steps):
            log.after_step(step)
    log.end()
    logged = [json.loads(line.split(" ", 1)[1]) for line in path.read_text().splitlines()]
    found = [key for key in keys(logged) if key.startswith("epoch_")]
    assert found == ["epoch_start", "epoch_stop"] * 2


def test_a_run_that_ends_within_an_epoch_ends_that_epoch(tmp_path):
    """As one that has reached --stop_at_top1."""
    path = tmp_path / "mlperf.log"
    log = MLPerfLogFile(str(path), Config())
    log.begin(make_plan(epochs=3.0), done=0, train_examples=1, eval_examples=1)
    log.after_step(1)
    log.end()
    logged = [json.loads(line.split(" ", 1)[1]) for line in path.read_text().splitlines()]
    assert keys(logged)[-3:] == ["epoch_start", "epoch_stop", "run_stop"]


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("sgd", 0.0), ("momentum", 0.8), ("lamb", None)]
)
def test_the_momentum_is_that_of_the_rule(tmp_path, optimizer, momentum):
    path = tmp_path / "mlperf.log"
    given = {} if optimizer == "sgd" else {"momentum": 0.8}
    config = Config(optimizer=OptimizerConfig(optimizer=optimizer, **given))
    log = MLPerfLogFile(str(path), config)
    log.begin(make_plan(epochs=3.0), done=0, train_examples=1, eval_examples=1)
    log.end()
    logged = [json.loads(line.split(" ", 1)[1]) for line in path.read_text().splitlines()]
    if momentum is None:
        assert not [key for key in keys(logged) if key.endswith("_opt_momentum")]
    else:
        assert value(logged, "sgd_opt_momentum") == momentum


def test_an_earlier_log_stays_until_steps_follow(tmp_path):
    """A start that is refused, or finds a complete run, does not destroy what is there."""
    path = tmp_path / "mlperf.log"
    path.write_text("of before\n")
    plan = make_plan(epochs=3.0)
    log = MLPerfLogFile(str(path), Config())
    log.begin(plan, done=plan.total_steps, train_examples=1, eval_examples=1)
    with log.evaluating(plan.total_steps) as accuracies:
        accuracies.append(0.5)
    log.end()
    assert path.read_text() == "of before\n"
    log = MLPerfLogFile(str(path), Config())
    log.begin(plan, done=0, train_examples=1, eval_examples=1)
    log.end()
    assert keys(
        json.loads(line.removeprefix(":::MLLOG ")) for line in path.read_text().splitlines()
    )[:2] == ["cache_clear", "init_start"]
