"""A benchmark's figures, and where they are written."""

import csv
import dataclasses

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.benchmark import allreduce as allreduce_benchmark
from trainer.benchmark import record
from trainer.benchmark.result import Sweep, create_result
from trainer.config import BenchmarkConfig, Config
from trainer.distributed import Worker
from trainer.errors import ConfigError, UserError


def create(durations_sec, *, batch_size=32, peak_gflops=1000.0, steps=2):
    return create_result(
        durations_sec,
        label="Forward",
        batch_size=batch_size,
        flops=10 * 10**9 * batch_size,
        burn_in=3,
        steps=steps,
        build_sec=1.0,
        first_run_sec=2.0,
        peak_gflops=peak_gflops,
        peak_memory_bytes=2**20,
    )


def test_the_figures_of_two_runs():
    result = create([0.1, 0.3], peak_gflops=2000.0)
    assert result.images_per_sec == pytest.approx(160)
    assert (result.mean_sec, result.sd_sec) == (pytest.approx(0.2), pytest.approx(0.1))
    assert result.step_time_ms["p50"] == pytest.approx(200)
    assert result.gflops_per_image == 10
    assert result.achieved_gflops == pytest.approx(1600)
    assert result.peak_fraction == pytest.approx(0.8)
    assert not result.partial


def test_equal_runs_have_no_spread():
    result = create([0.7] * 9, steps=9)
    assert result.sd_sec == 0
    assert result.step_time_ms["sd"] == 0


def test_fewer_runs_than_asked_for_are_partial():
    assert create([0.7] * 9, steps=10).partial


def test_a_rate_above_the_peak_is_an_error():
    # 32 images of 10 GFLOP in 0.1 s are 3200 GFLOP/s.
    assert create([0.1], peak_gflops=3200.0).peak_fraction == pytest.approx(1)
    with pytest.raises(UserError, match=r"3200 GFLOP/s is above the measured peak .* 3000 GFLOP/s"):
        create([0.1], peak_gflops=3000.0)


def sweep():
    rows = (create([0.4], batch_size=8), create([0.8, 0.8], batch_size=32))
    return Sweep(rows, {512: "does not fit in memory"})


def test_a_sweep_says_which_size_is_best_and_which_failed():
    result = sweep()
    assert result.best.batch_size == 32
    assert [row.get("batch_size") for row in result.to_json()["sweep"]] == [8, 32, 512]
    assert result.to_json()["images_per_sec"] == pytest.approx(40)
    table = result.format("forward").splitlines()
    assert table[4] == "   512  does not fit in memory"
    assert table[-1] == "best: batch 32, 40.00 images/s"


def test_one_size_is_no_sweep():
    assert "sweep" not in Sweep((create([0.4]),)).to_json()


def allreduce():
    def row(size):
        return allreduce_benchmark.create_row([0.1, 0.3], size_bytes=size, workers=4)

    return allreduce_benchmark.AllreduceResult(4, 3, False, None, row(10**9), (row(2**20),))


def test_bandwidths_of_an_allreduce():
    gradients = allreduce().gradients
    assert gradients.algorithm_gb_per_sec == pytest.approx(1 / 0.2)
    # Each of n workers of a ring sends 2 (n - 1) / n of the buffer.
    assert gradients.bus_gb_per_sec == pytest.approx(1.5 / 0.2)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_rows_are_appended(tmp_path):
    path = tmp_path / "results.csv"
    config = Config(benchmark=BenchmarkConfig(result_csv=str(path)))
    record.check_csv(str(path))
    record.append_csv(config, Worker(), {"forward": sweep()})
    record.check_csv(str(path))
    record.append_csv(config, Worker(0, 4, 0, 4), {"allreduce": allreduce()})
    rows = read(path)
    assert [(row["pass"], row["batch_size"], row["error"], row["workers"]) for row in rows] == [
        ("forward", "8", "", "1"),
        ("forward", "32", "", "1"),
        ("forward", "512", "does not fit in memory", "1"),
        ("allreduce", "", "", "4"),
        ("allreduce", "", "", "4"),
    ]
    assert float(rows[1]["images_per_sec"]) == sweep().best.images_per_sec
    assert float(rows[0]["step_time_ms_p99"]) == pytest.approx(400)
    assert rows[4]["bytes"] == str(2**20)
    assert all(row["version_tensorflow"] and row["date"] and row["cpu"] for row in rows)


def test_every_figure_has_a_column():
    figures = {field.name for field in dataclasses.fields(create([0.4]))}
    figures |= {field.name for field in dataclasses.fields(allreduce().gradients)}
    assert figures - {"durations_sec", "step_time_ms"} < set(record.COLUMNS)


def test_a_csv_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ConfigError, match=r"--result_csv: must be a new file .*other\.csv"):
        record.check_csv(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--result_csv: must be readable text, got .*other\.csv"):
        record.check_csv(str(path))


def test_tensorboard_has_every_run(tmp_path):
    record.write_events(str(tmp_path), {"forward": sweep(), "allreduce": allreduce()})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        *(
            f"benchmark/forward{suffix}/{name}"
            for suffix in ("", "/batch_8", "/batch_32")
            for name in ("step_time_ms", "images_per_sec")
        ),
        "benchmark/allreduce/step_time_ms",
    }
    best = events.Scalars("benchmark/forward/images_per_sec")
    assert [(event.step, event.value) for event in best] == [(1, 40), (2, 40)]
    times = events.Scalars("benchmark/allreduce/step_time_ms")
    assert [event.value for event in times] == pytest.approx([100, 300])
