"""The benchmark as a whole, in processes of its own."""

import collections
import csv
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time

import processes
import pytest
from absl import flags as absl_flags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flags import command_line
from trainer.benchmark import passes as benchmark_passes
from trainer.benchmark import peak, sweep
from trainer.benchmark.result import Sweep, create_result
from trainer.config import BenchmarkConfig, Config, DataConfig, ModelConfig, RunConfig
from trainer.config import benchmark as benchmark_config
from trainer.process import alone, host_cores
from trainer.process.alone import to_flags

NETWORK = ("--model=tiny:network", "--image_size=16", "--batch_size=4")
PASSES = ("forward", "forward_backward", "train_step")


def benchmark(*flags, **options):
    (done,) = processes.trainers(["--benchmark", *NETWORK, *flags], **options)
    return done


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of three passes: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    done = benchmark(
        f"--benchmark_passes={','.join(PASSES)}",
        "--benchmark_steps=20",
        "--benchmark_burn_in=3",
        f"--result_json={folder}/result.json",
        f"--result_csv={folder}/result.csv",
        f"--logdir={folder}/logs",
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def read_passes(path):
    return json.loads(path.read_text())["result"]["passes"]


def rows_of(printed):
    """The cells of all rows of tables that were printed."""
    return [line.split() for line in printed.splitlines() if re.fullmatch(r" *\d+[\d. -]+", line)]


@pytest.mark.parametrize(
    ("measured_gflops", "peak_gflops"),
    [
        ([471.0, 480.0], 471.0),
        ([238.0, 470.0, 480.0], 470.0),
        ([238.0, 200.0, 260.0, 230.0, 480.0], 260.0),
        ([238.0, 200.0, 285.0, 230.0, 480.0], 291.0),  # No more than its fastest run.
    ],
)
def test_the_peak_is_measured_again_where_a_pass_was_faster(
    monkeypatch, measured_gflops, peak_gflops
):
    measure_as(monkeypatch, measured_gflops)
    device_peak = peak.DevicePeak("bfloat16")
    assert device_peak.measure().gflops == measured_gflops[0]
    assert device_peak.measure().gflops == measured_gflops[0]
    assert device_peak.measure(291.0).gflops == peak_gflops
    assert device_peak.measure().gflops == peak_gflops


def measure_as(monkeypatch, measured_gflops):
    """Replaces the measured peak by these values in turn; returns those not yet taken."""
    left = list(measured_gflops)
    found = lambda *_: peak.Peak(left[0], 100.0, 1.05 * left.pop(0), 12, None)  # noqa: E731
    monkeypatch.setattr(peak, "measure_peak", found)
    return left


def test_processes_of_a_sweep_measure_the_peak_once_and_again_where_one_was_faster(monkeypatch):
    left = measure_as(monkeypatch, [200.0, 300.0, 400.0])
    lines = []

    def run_alone(flags, environ):
        """Does as a process would that takes 0.1 s for 10 GFLOP, or for 27 of a batch of 4."""
        given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        size = int(given["batch_size"])
        with monkeypatch.context() as process:
            for variable in environ.items():
                process.setenv(*variable)
            device_peak = peak.DevicePeak("float32")
        device_peak.measure()
        if size == 2:  # After the peak was measured.
            return alone.Ended(-signal.SIGKILL, "", False)
        achieved = {3: 100.0, 4: 270.0, 5: 160.0}[size]
        row = create_result(
            [0.1],
            label="Forward",
            batch_size=size,
            flops=int(achieved * 1e8),
            flops_left_out=0,
            burn_in=0,
            steps=1,
            build_sec=1.0,
            first_run_sec=1.0,
            peak=device_peak.measure(achieved),
            others_share=None,
            peak_memory_bytes=2**20,
        )
        result = {"result": {"passes": {"forward": Sweep((row,)).to_json()}}}
        pathlib.Path(given["result_json"]).write_text(json.dumps(result))
        return alone.Ended(0, "", False)

    monkeypatch.setattr(sweep, "run_alone", run_alone)
    config = Config(mode="benchmark", benchmark=BenchmarkConfig(benchmark_batch_sizes="2,3,4,5"))
    device_peak = peak.DevicePeak("float32")
    result = sweep.measure(config, "forward", device_peak, lines.append)
    assert left == [400]
    assert device_peak.known.gflops == 300
    assert [row.peak_gflops for row in result.rows] == [200, 300, 300]
    assert [row.peak_gflops for row in result.with_peak(device_peak.known).rows] == [300] * 3
    assert list(result.failures) == [2]
    names = [f"forward, batch {size}:" for size in (2, 3, 4, 5)]
    assert lines == [names[0], "failed; the table says why", *names[1:]]


@pytest.mark.processes
def test_two_step_lines_and_a_closing_line_per_pass(measured):
    _, printed = measured
    assert len(re.findall(r"^\S+ \S+: step (?:10|20), duration = \d+\.\d{3}$", printed, re.M)) == 6
    labels = re.findall(r": ([\w -]+) across 20 steps, \d\.\d{3} \+/- \d\.\d{3} sec", printed)
    assert labels == ["Forward", "Forward-backward", "Train step"]


@pytest.mark.processes
def test_the_json_has_the_printed_figures(measured):
    folder, printed = measured
    passes = read_passes(folder / "result.json")
    assert tuple(passes) == PASSES
    closing = re.findall(r"across 20 steps, ([\d.]+) \+/- ([\d.]+) sec / batch", printed)
    rows = rows_of(printed)
    assert [row[0] for row in rows] == ["4"] * 3
    for figures, (mean, sd), row in zip(passes.values(), closing, rows, strict=True):
        assert (f"{figures['mean_sec']:.3f}", f"{figures['sd_sec']:.3f}") == (mean, sd)
        expected = [figures["step_time_ms"][key] for key in ("mean", "sd", "p50", "p90", "p99")]
        expected += [figures["images_per_sec"], figures["achieved_gflops"]]
        assert list(map(float, row[1:8])) == pytest.approx(expected, rel=0.005, abs=0.00501)
        assert row[8] in ("-", f"{figures['peak_fraction']:.3f}")
        assert figures["images_per_sec"] == pytest.approx(4 / figures["mean_sec"])
        assert figures["peak_fraction"] == figures["made_gflops"] / figures["peak_gflops"]
        assert 0 < figures["made_gflops"] <= figures["achieved_gflops"]
        assert 0 < figures["peak_fraction"] < 1
        assert figures["peak"]["gflops"] == figures["peak_gflops"]
        peak_of = figures["peak"]
        assert peak_of["lowest_gflops"] < peak_of["gflops"] < peak_of["highest_gflops"]
        assert (figures["steps"], figures["burn_in"], figures["partial"]) == (20, 3, False)


@pytest.mark.processes
def test_the_peak_is_one_for_all_passes(measured):
    folder, printed = measured
    peaks = [figures["peak"] for figures in read_passes(folder / "result.json").values()]
    assert peaks == [peaks[0]] * 3
    found = re.findall(
        r"^measured peak ([\d.]+) GFLOP/s \(12 runs, ([\d.]+) to ([\d.]+)\)$", printed, re.M
    )
    names = ("gflops", "lowest_gflops", "highest_gflops")
    assert found == [tuple(f"{peaks[0][name]:.1f}" for name in names)] * 3


@pytest.mark.processes
def test_csv_and_tensorboard_have_the_same_figures(measured):
    folder, _ = measured
    passes = read_passes(folder / "result.json")
    with open(folder / "result.csv", newline="") as file:
        rows = {row["pass"]: row for row in csv.DictReader(file)}
    events = EventAccumulator(str(folder / "logs")).Reload()
    for name, figures in passes.items():
        assert float(rows[name]["mean_sec"]) == figures["mean_sec"]
        times = [event.value for event in events.Scalars(f"benchmark/{name}/step_time_ms")]
        assert times == pytest.approx([1000 * sec for sec in figures["durations_sec"]])
        rates = [event.value for event in events.Scalars(f"benchmark/{name}/images_per_sec")]
        assert rates == pytest.approx([4 / sec for sec in figures["durations_sec"]])


@pytest.mark.processes
def test_a_sweep_prints_each_row_once_also_that_of_a_batch_that_does_not_fit(tmp_path):
    done = benchmark(
        "--benchmark_passes=forward",
        "--image_size=512",
        "--benchmark_batch_sizes=10000000,3,2",  # 7.8 TB
        "--benchmark_steps=2",
        "--benchmark_burn_in=0",
        f"--result_json={tmp_path}/result.json",
        f"--logdir={tmp_path}/log",
        "--histogram_every=5",  # Means nothing to a benchmark, and is in many a recipe.
    )
    assert done.returncode == 0, done.stderr
    rows = read_passes(tmp_path / "result.json")["forward"]["sweep"]
    assert [row["batch_size"] for row in rows] == [3, 2, 10_000_000]
    assert "memory" in rows[2]["error"]
    assert rows[0]["peak"] == rows[1]["peak"]
    assert [row[0] for row in rows_of(done.stdout)] == ["3", "2"]
    assert len(re.findall(r"^10000000  .*memory", done.stdout, re.M)) == 1
    assert done.stdout.count("images/s") == 3  # The table's two titles, and the best row.
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.processes
@pytest.mark.parametrize("sizes", [(), ("--benchmark_batch_sizes=2,3",)], ids=["one", "sweep"])
def test_ctrl_c_on_a_busy_machine_prints_what_was_measured_and_says_what_it_is(sizes, tmp_path):
    # A shell's background job, which these tests may be, ignores Ctrl-C and hands that down.
    command = ["env", "--default-signal=INT"]
    command += [sys.executable, "-m", "trainer", "--benchmark", *NETWORK, *sizes]
    command += ["--benchmark_passes=forward,forward_backward", "--benchmark_steps=100000000"]
    command += [f"--result_json={tmp_path}/result.json"]
    with subprocess.Popen(
        command,
        cwd=processes.ROOT,
        env=processes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        if sizes:
            assert process.stdout.readline() == "forward, batch 2:\n"
        first = process.stdout.readline()
        with processes.others_that_spin(host_cores.available_cores() // 2 + 1):
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                process.stdout.readline()
            process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=100)
    assert ": step 10, duration" in first
    assert process.returncode == 130
    steps = int(re.search(r"partial, (\d+) of 100000000 steps", printed)[1])
    assert f"Forward across {steps} steps" in printed
    assert printed.endswith("\npartial: it ended before all was timed\n")
    assert re.search(r"^other processes took \d+ % of the cores: times mean little", printed, re.M)
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    assert result["partial"]
    assert result["passes"]["forward"]["steps"] == steps
    assert result["passes"]["forward"]["others_share"] > 0.1
    ((_, *_, share, _),) = rows_of(printed)
    assert share == "-"
    assert "forward_backward" not in result["passes"]


@pytest.mark.processes
def test_the_allreduce_of_two_workers(tmp_path):
    done = processes.horovodrun(
        2,
        [
            *("-m", "trainer", "--benchmark", *NETWORK),
            *("--benchmark_passes=allreduce", "--benchmark_steps=5", "--benchmark_burn_in=1"),
            f"--result_json={tmp_path}/result.json",
        ],
        HOROVOD_TIMELINE=f"{tmp_path}/timeline.json",
    )
    assert done.returncode == 0, done.stderr
    row = read_passes(tmp_path / "result.json")["allreduce"]
    # Two convolutions without bias, BN's beta and gamma of each, the linear layer and its bias.
    parameters = 9 * 3 * 8 + 9 * 8 * 8 + 2 * 8 + 2 * 8 + 8 * 1000 + 1000
    assert abs(row["bytes"] - 4 * parameters) <= 4 * 2 * 8  # With or without gamma.
    assert row["algorithm_gb_per_sec"] == pytest.approx(row["bytes"] / row["mean_sec"] / 1e9)
    assert row["bus_gb_per_sec"] == row["algorithm_gb_per_sec"]  # 2 (n - 1) / n is 1.
    assert [buffer["bytes"] for buffer in row["buffers"]] == [
        2**12,
        *(2**20 * size for size in (1, 4, 16, 64)),
    ]
    assert 0 < row["cpu_sec"] < 60
    # The last layer's gradient is ready first, and the first convolution's with the last operation.
    order = row["order"]
    assert [order[0]["name"].split("/")[0], order[-1]["name"]] == ["logits", "conv1/weights"]
    assert sum(4 * math.prod(each["shape"]) for each in order) == row["bytes"]
    assert [each["ready"] for each in order] == sorted(each["ready"] for each in order)
    assert 1 / 3 < order[0]["ready"] < order[-1]["ready"] == 1
    assert "Allreduce of gradients across 5 steps" in done.stdout
    # Horovod has averaged every tensor in each run: a first one, one of burn-in, five timed ones.
    events = json.loads((tmp_path / "timeline.json").read_text().rstrip(",]\n") + "]")
    of_name = collections.defaultdict(list)
    for event in events:
        of_name[event.get("name")].append(event)
    names = {event["pid"]: event["args"].get("name") for event in of_name["process_name"]}
    averages = collections.Counter(names[event["pid"]] for event in of_name["ALLREDUCE"])
    of_gradients = {name: count for name, count in averages.items() if "/gradients" in name}
    assert of_gradients.pop("urgent/benchmark/gradients") == 7
    assert set(of_gradients.values()) == {7}


@pytest.mark.processes
def test_the_allreduce_is_the_one_that_flags_give(tmp_path):
    flags = ["--gradient_compression=bfloat16", "--fusion_threshold_mb=0"]
    runs = ["--benchmark_passes=allreduce", "--benchmark_steps=1", "--benchmark_burn_in=0"]
    command = ["-m", "trainer", "--benchmark", *NETWORK, *runs, *flags]
    done = processes.horovodrun(2, command, HOROVOD_TIMELINE=f"{tmp_path}/timeline.json")
    assert done.returncode == 0, done.stderr
    assert "allreduce: 2 workers, bfloat16; sd" in done.stdout
    events = json.loads((tmp_path / "timeline.json").read_text().rstrip(",]\n") + "]")
    # A bucket for each of eight gradients and five buffers, twice: a first run and a timed one.
    assert sum(event.get("name") == "ALLTOALL" for event in events) == 2 * (8 + 5)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--benchmark_passes=forwards", "--benchmark_passes: must be some of .*, got 'forwards'"),
        ("--batch_size=0", "--batch_size: must be at least 1, got 0"),
        ("--benchmark_batch_sizes=8,0", "--benchmark_batch_sizes: must be at least 1, got 0"),
        ("--benchmark_batch_sizes=8,x", "--benchmark_batch_sizes: must be whole numbers .*'8,x'"),
        ("--benchmark_steps=-3", "--benchmark_steps: must be at least 1, got -3"),
        ("--benchmark_burn_in=-1", "--benchmark_burn_in: must be at least 0, got -1"),
        ("--benchmark_passes=input", "--data_dir: must be given with --benchmark_passes=input"),
        ("--benchmark_passes=allreduce", "--benchmark_passes: allreduce must have several workers"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flag, line):
    done = benchmark(flag)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert re.fullmatch(f"slim-horovod: {line}.*", done.stderr.splitlines()[-1])


def test_every_pass_that_the_flag_names_can_be_built():
    assert {*benchmark_passes.PASSES, "allreduce"} == set(benchmark_config.PASSES)


def test_a_configuration_becomes_the_flags_that_give_it():
    config = Config(
        mode="benchmark",
        model=ModelConfig(precision="bfloat16", xla=True, num_classes=7),
        data=DataConfig(batch_size=9, crop_min_area=0.1),
        run=RunConfig(result_json="a b.json"),
        benchmark=BenchmarkConfig(benchmark_steps=5),
    )

    argv = ["slim-horovod", *to_flags(config)]
    assert command_line.parse(argv, absl_flags.FlagValues()) == config
