"""--mllog against the rules that MLPerf's checker has for a ResNet run (training 4.0.0, open).

They are those of mlperf_logging 4.1.68, compliance_checker/training_4.0.0/: common.yaml,
open_common.yaml and open_resnet.yaml.
"""

import json

import pytest
import tiny

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
