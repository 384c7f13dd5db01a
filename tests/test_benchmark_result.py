"""A benchmark's figures, and where they are written."""

import csv
import dataclasses
import json
import os
import subprocess
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.benchmark import allreduce as allreduce_benchmark
from trainer.benchmark import record
from trainer.benchmark.peak import Peak
from trainer.benchmark.result import PassResult, Sweep, create_result
from trainer.config import BenchmarkConfig, Config
from trainer.distributed import Worker
from trainer.errors import ConfigError, UserError
from trainer.process import files

PEAK = Peak(1000.0, 900.0, 1050.0, 12, 0.02)


def create(durations_sec, *, batch_size=32, gflops=10, left_out=0, peak=PEAK, others=None):
    return create_result(
        durations_sec,
        label="Forward",
        batch_size=batch_size,
        flops=gflops * 10**9 * batch_size,
        flops_left_out=None if left_out is None else left_out * 10**9 * batch_size,
        burn_in=3,
        steps=2,
        build_sec=1.0,
        first_run_sec=2.0,
        peak=peak if gflops else None,
        others_share=others,
        peak_memory_bytes=2**20,
    )


def peak_of(gflops, others=None):
    return Peak(gflops, gflops / 2, gflops, 12, others)


def test_the_figures_of_two_runs():
    result = create([0.1, 0.3], peak=peak_of(2000.0))
    assert result.images_per_sec == pytest.approx(160)
    assert (result.mean_sec, result.sd_sec) == (pytest.approx(0.2), pytest.approx(0.1))
    assert result.step_time_ms["p50"] == pytest.approx(200)
    assert result.gflops_per_image == 10
    assert result.achieved_gflops == pytest.approx(1600)
    assert result.peak_fraction == pytest.approx(0.8)
    assert not result.partial


def test_the_share_of_the_peak_is_of_what_is_made():
    result = create([0.1], left_out=7)  # 3200 GFLOP/s by definition, above the peak.
    assert (result.achieved_gflops, result.made_gflops) == (3200, pytest.approx(960))
    assert result.peak_fraction == pytest.approx(0.96)
    assert result.with_peak(peak_of(2000.0)).peak_fraction == pytest.approx(0.48)
    table = Sweep((result,)).format("forward")
    assert "\n3 of them are made (3 x 3 convolutions by tiles): `of peak` is theirs\n" in table
    assert "are made" not in Sweep((create([0.4]),)).format("forward")
    # On a GPU it is not known what is made: such a rate is no error.
    unknown = create([0.1], left_out=None)
    assert (unknown.made_gflops, unknown.peak_fraction) == (None, pytest.approx(3.2))


def test_equal_runs_have_no_spread():
    result = create([0.7] * 9)
    assert result.sd_sec == 0
    assert result.step_time_ms["sd"] == 0


def test_fewer_runs_than_asked_for_are_partial():
    assert create([0.7]).partial


def test_a_rate_above_the_peak_is_an_error():
    # 32 images of 10 GFLOP in 0.1 s are 3200 GFLOP/s.
    assert create([0.1], peak=peak_of(3200.0)).peak_fraction == pytest.approx(1)
    with pytest.raises(UserError, match=r"3200 GFLOP/s is above the measured peak .* 3000 GFLOP/s"):
        create([0.1], peak=peak_of(3000.0))


def sweep(**load):
    rows = (create([0.4], batch_size=8, **load), create([0.8, 0.8], batch_size=32))
    return Sweep(rows, {512: "does not fit in memory"})


def test_a_sweep_says_which_size_is_best_and_which_failed():
    result = sweep()
    assert result.best.batch_size == 32
    assert [row.get("batch_size") for row in result.to_json()["sweep"]] == [8, 32, 512]
    assert result.to_json()["images_per_sec"] == pytest.approx(40)
    table = result.format("forward").splitlines()
    assert table[4] == "  512  does not fit in memory"
    assert table[-1] == "best: batch 32, 40.00 images/s"


def test_the_table_has_a_row_per_size_and_the_peak_with_its_spread():
    table = sweep().format("forward").splitlines()
    # 8 images of 10 GFLOP in 0.4 s; 32 in 0.8 s.
    assert [" ".join(line.split()) for line in table[1:4]] == [
        "batch mean sd p50 p90 p99 images/s GFLOP/s of peak MiB",
        "8 400.0 0.00 400.0 400.0 400.0 20.00 200.0 0.200 1",
        "32 800.0 0.00 800.0 800.0 800.0 40.00 400.0 0.400 1",
    ]
    assert "measured peak 1000.0 GFLOP/s (12 runs, 900.0 to 1050.0)" in table


def test_tables_fit_into_80_columns_and_lines_into_100():
    for gflops in (10, 0):
        rows = [create([20, 99], batch_size=size, gflops=gflops) for size in (1, 1024)]
        rows = [dataclasses.replace(row, peak_memory_bytes=2**37) for row in rows]
        rows[0] = dataclasses.replace(rows[0], others_share=1.0)
        text = Sweep(tuple(rows), {10**7: "--batch_size: must fit " * 9}).format("forward_backward")
        assert max(map(len, text.splitlines()[:7])) <= 80
        assert max(map(len, text.splitlines())) <= 100


def test_the_input_has_no_operations_and_no_peak():
    text = Sweep((create([0.4], gflops=0),)).format("input")
    assert "FLOP" not in text
    assert "peak" not in text
    assert "80.00" in text  # Images per second.


def test_all_rows_have_the_last_peak_and_the_faster_row_the_larger_share():
    rows = (create([0.4], batch_size=8, peak=peak_of(250.0)), create([0.8], peak=peak_of(500.0)))
    assert rows[0].peak_fraction == rows[1].peak_fraction  # Each has its own.
    small, large = Sweep(rows).with_peak(peak_of(800.0)).rows
    assert (small.peak_gflops, large.peak_gflops) == (800, 800)
    assert (small.peak_fraction, large.peak_fraction) == (pytest.approx(0.25), pytest.approx(0.5))
    reading = create([0.4], gflops=0)
    assert reading.with_peak(peak_of(800.0)) == reading


BUSY = "other processes took {} % of the cores: times mean little; repeat on a quiet machine"


def test_where_the_machine_was_busy_the_table_says_so_and_tells_no_share():
    table = sweep(others=0.43).format("forward").splitlines()
    assert BUSY.format("up to 43") in table
    assert [line.split()[-2] for line in table[2:4]] == ["-", "0.400"]
    assert sweep(others=0.43).to_json()["sweep"][0]["others_share"] == 0.43
    assert sweep(others=0.43).to_json()["sweep"][0]["peak_fraction"] == pytest.approx(0.2)
    assert BUSY.format("43") in Sweep((create([0.4], others=0.43, gflops=0),)).format("input")
    assert "other processes" not in sweep(others=0.04).format("forward")


def test_no_share_is_told_where_the_machine_was_busy_when_the_peak_was_measured():
    table = sweep().with_peak(peak_of(1000.0, others=0.5)).format("forward").splitlines()
    line = (
        "other processes took 50 % of the cores while the peak was measured: no share of it is told"
    )
    assert line in table
    assert [line.split()[-2] for line in table[2:4]] == ["-", "-"]


def test_figures_come_back_from_json():
    for row in (create([0.1, 0.7], others=0.3), create([0.1], gflops=0)):
        content = json.dumps(Sweep((row,), partial=row.partial).to_json())
        assert PassResult.from_json(json.loads(content)) == row


def test_one_size_is_no_sweep():
    assert "sweep" not in Sweep((create([0.4]),)).to_json()


def allreduce(reduction="average", compression="none"):
    def row(size):
        return allreduce_benchmark.create_row([0.1, 0.3], size_bytes=size, workers=4)

    return allreduce_benchmark.AllreduceResult(
        4, 3, False, reduction, compression, None, row(10**9), (row(2**20),)
    )


def test_bandwidths_of_an_allreduce():
    gradients = allreduce().gradients
    assert gradients.algorithm_gb_per_sec == pytest.approx(1 / 0.2)
    # Each of n workers of a ring sends 2 (n - 1) / n of the buffer.
    assert gradients.bus_gb_per_sec == pytest.approx(1.5 / 0.2)


@pytest.mark.parametrize(
    ("reduction", "compression", "said"),
    [
        ("average", "none", "allreduce: 4 workers, float32; "),
        ("average", "float16", "allreduce: 4 workers, float16; "),
        ("adasum", "bfloat16", "allreduce: 4 workers, adasum, bfloat16; "),
    ],
)
def test_the_table_of_an_allreduce_says_what_was_reduced_and_how(reduction, compression, said):
    result = allreduce(reduction, compression)
    assert result.format("allreduce").startswith(said)
    content = result.to_json()
    assert content["gradient_reduction"] == reduction
    assert content["gradient_compression"] == compression


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_rows_are_appended(tmp_path):
    path = tmp_path / "results.csv"
    config = Config(mode="benchmark", benchmark=BenchmarkConfig(result_csv=str(path)))
    record.check_csv(str(path))
    record.append_csv(config, Worker(), {"forward": sweep(others=0.43)})
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
    assert rows[0]["peak_fraction"] == ""  # The machine was busy.
    assert float(rows[1]["peak_fraction"]) == pytest.approx(0.4)
    assert rows[4]["bytes"] == str(2**20)
    assert all(row["version_tensorflow"] and row["date"] and row["cpu"] for row in rows)


def test_benchmarks_at_the_same_time_lose_no_row(tmp_path):
    path = tmp_path / "results.csv"
    config = Config(mode="benchmark", benchmark=BenchmarkConfig(result_csv=str(path)))
    both = [
        threading.Thread(target=record.append_csv, args=(config, Worker(), {name: sweep()}))
        for name in ("forward", "train_step")
    ]
    with open(tmp_path / ".results.csv.lock", "w") as lock:
        files.lock(lock, lock.name, wait=True)
        for thread in both:
            thread.start()
    for thread in both:
        thread.join()
    assert sorted({row["pass"] for row in read(path)}) == ["forward", "train_step"]
    assert len(read(path)) == 6
    path.write_bytes(path.read_bytes()[:-1])  # As some editors save it.
    record.append_csv(config, Worker(), {"input": sweep()})
    assert len(read(path)) == 9


def test_the_lock_of_a_table_is_beside_it_and_not_beside_a_link(tmp_path):
    table, link = tmp_path / "tables" / "results.csv", tmp_path / "links" / "mine.csv"
    for path in (table, link):
        path.parent.mkdir()
    link.symlink_to(table)
    config = Config(mode="benchmark", benchmark=BenchmarkConfig(result_csv=str(link)))
    record.append_csv(config, Worker(), {"forward": sweep()})
    assert len(read(table)) == 3
    assert list(link.parent.iterdir()) == [link]


def test_rows_are_passed_on_to_who_reads_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    config = Config(mode="benchmark", benchmark=BenchmarkConfig(result_csv=str(pipe)))
    record.check_csv(str(pipe))  # Without waiting for somebody who writes.
    record.append_csv(config, Worker(), {"forward": sweep()})
    header, *rows = reader.communicate(timeout=60)[0].splitlines()
    assert header.split(",") == list(record.COLUMNS)
    assert len(rows) == 3


def test_rows_go_to_where_a_shell_has_sent_the_output(tmp_path):
    place = tmp_path / "output.txt"
    with open(place, "a", encoding="utf-8") as output:
        output.write("printed before\n")
        output.flush()
        link = f"/proc/self/fd/{output.fileno()}"  # As /dev/stdout is one.
        config = Config(mode="benchmark", benchmark=BenchmarkConfig(result_csv=link))
        record.append_csv(config, Worker(), {"forward": sweep()})
        output.write("printed after\n")
    before, header, *rows, after = place.read_text().splitlines()
    assert (before, after) == ("printed before", "printed after")
    assert header.split(",") == list(record.COLUMNS)
    assert len(rows) == 3


def test_every_figure_has_a_column():
    figures = {field.name for field in dataclasses.fields(create([0.4]))}
    figures |= {field.name for field in dataclasses.fields(allreduce().gradients)}
    # A file's columns stay: a busy machine shows as a share of the peak that is missing.
    apart = {"durations_sec", "step_time_ms", "peak", "others_share", "cpu_sec"}
    assert figures - apart < set(record.COLUMNS)


def test_a_csv_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ConfigError, match=r"--result_csv: must be a new file .*other\.csv"):
        record.check_csv(str(path))
    rows = "," * 20_000 + "in Latin-1: \xe9\n"
    path.write_bytes(f"{','.join(record.COLUMNS)}\n{rows}".encode("latin-1"))
    before = path.read_bytes()
    record.check_csv(str(path))  # The rows are nobody's business.
    config = Config(mode="benchmark", benchmark=BenchmarkConfig(result_csv=str(path)))
    record.append_csv(config, Worker(), {"forward": sweep()})
    assert path.read_bytes().startswith(before + b"forward,")
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
