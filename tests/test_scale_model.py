"""The model of scale, against closed forms and simulations that are written down here."""

import itertools
import math
import sys

from shared import published_scaling, scale_inputs, scale_model
from shared.run_logs import Curve
from shared.scale_model import Gradient, Knobs, Line, Link, Work

import benchmark_link
import numpy as np
import pytest

from trainer.errors import UserError

FAST, SLOW = Link(1e-6, 1e11), Link(2e-5, 1e9)


def ring_by_messages(parts, latency_sec, bytes_per_sec, workers):
    """A ring, message by message: who sends when, given when its last message came."""
    arrived = [0.0] * workers
    for _ in range(2 * (workers - 1)):
        sent = [at + latency_sec + parts / bytes_per_sec for at in arrived]
        arrived = [max(arrived[k], sent[k - 1]) for k in range(workers)]
    return max(arrived)


@pytest.mark.parametrize("workers", [2, 3, 8, 64])
def test_a_ring_takes_as_long_as_its_messages(workers):
    expected = ring_by_messages(1e6 / workers, SLOW.latency_sec, SLOW.bytes_per_sec, workers)
    assert scale_model.ring_sec(1e6, workers, SLOW) == pytest.approx(expected)
    # Of many workers each sends twice the bytes; the latency grows with them.
    assert scale_model.ring_sec(1e12, 10**4, Link(0, 1e9)) == pytest.approx(2e3, rel=1e-3)


def test_a_ring_over_hosts_is_as_slow_as_its_slowest_link():
    took = scale_model.flat_ring_sec(8e6, 4, 2, FAST, SLOW)
    assert took == pytest.approx(6 * 2e-5 + 8 * 1e-6 + 14 / 8 * 8e6 / 1e9)
    assert scale_model.flat_ring_sec(8e6, 1, 8, FAST, SLOW) == scale_model.ring_sec(8e6, 8, FAST)
    assert scale_model.flat_ring_sec(8e6, 8, 1, FAST, SLOW) == scale_model.ring_sec(8e6, 8, SLOW)


def test_a_hierarchy_sends_less_between_hosts_than_a_ring_and_more_within():
    took = scale_model.hierarchical_sec(8e6, 4, 8, FAST, SLOW)
    within = 14 * (1e-6 + 1e6 / 1e11)
    assert took == pytest.approx(within + 6 * (2e-5 + 2e6 / 1e9))
    assert took < scale_model.flat_ring_sec(8e6, 4, 8, FAST, SLOW)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_slowest_of_some_draws_is_the_mean_over_all_of_them(workers):
    samples = [1.0, 1.5, 4.0, 1.5]
    draws = itertools.product(samples, repeat=workers)
    expected = np.mean([max(draw) for draw in draws])
    assert scale_model.expected_maximum(samples, workers) == pytest.approx(expected)


def test_over_several_batches_fast_ones_make_up_for_slow_ones():
    work = Work((), compute_sec=2.0, samples_sec=(1.0, 3.0))
    assert work.slowest_sec(2) == pytest.approx(2.5)
    # The mean of two is 1, 2 or 3, with probabilities of 1/4, 1/2, 1/4.
    draws = itertools.product([1.0, 2.0, 2.0, 3.0], repeat=2)
    expected = np.mean([max(draw) for draw in draws])
    assert work.slowest_sec(2, 2) == pytest.approx(expected, rel=0.01)


def test_a_line_is_found_where_there_is_one_and_never_falls_below_zero():
    line = scale_model.fit_line([1e3, 1e6, 1e8], [2e-3 + size / 5e8 for size in (1e3, 1e6, 1e8)])
    assert (line.start_sec, line.sec_per_byte) == pytest.approx((2e-3, 2e-9))
    below = scale_model.fit_line([1e6, 2e6], [1e-3, 3e-3])  # A line through these starts below 0.
    assert below.start_sec == 0
    assert below.sec_per_byte == pytest.approx(
        least_errors(lambda slope, size: slope * size, 1e-9), rel=1e-4
    )
    falling = scale_model.fit_line([1e6, 2e6], [1e-3, 0.4e-3])
    assert falling.sec_per_byte == 0
    assert falling.start_sec == pytest.approx(
        least_errors(lambda start, _: start, 1e-3, seconds=(1e-3, 0.4e-3)), rel=1e-4
    )


def least_errors(line, about, seconds=(1e-3, 3e-3)):
    """The factor of a line whose relative errors are least by their squares, tried out."""
    tried = about * np.linspace(0.2, 3, 280_001)
    pairs = zip((1e6, 2e6), seconds, strict=True)
    errors = sum((line(tried, size) / duration - 1) ** 2 for size, duration in pairs)
    return tried[np.argmin(errors)]


def test_neighbours_are_fused_up_to_the_threshold():
    assert scale_model.fuse([3, 3, 3, 9, 1], 6) == [6, 3, 9, 1]
    assert scale_model.fuse([3, 3], 0) == [3, 3]


def simulate_by_ticks(gradients, compute_sec, cost, busy_share, knobs, tick_sec=1e-4):
    """Horovod's loop and the backward pass, both in small steps of a clock."""
    waiting, computed, now = list(gradients), 0.0, 0.0
    buffers, left_sec, began = [], 0.0, 0.0
    looks = True
    while waiting or buffers or left_sec > 1e-9 or computed < compute_sec - 1e-9:
        if looks:
            began, looks = now, False
            ready = [g for g in waiting if g.ready * compute_sec <= computed + 1e-9]
            waiting = [g for g in waiting if g not in ready]
            buffers = scale_model.fuse([knobs.sent_share * g.bytes for g in ready], 1e9)
        if left_sec <= 1e-9 and buffers:
            left_sec = cost(buffers.pop(0))
        is_sending = left_sec > 1e-9
        left_sec -= tick_sec
        computed += tick_sec * ((1 - busy_share) if is_sending else 1)
        now += tick_sec
        is_free = left_sec <= 1e-9 and not buffers
        looks = is_free and (now - began >= knobs.cycle_sec - 1e-9 or computed >= compute_sec)
    return now


@pytest.mark.parametrize("busy_share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("bytes_per_sec", [1e7, 1e8, 1e9])
def test_steps_are_those_of_a_clock_that_ticks(busy_share, bytes_per_sec):
    rng = np.random.default_rng(5)
    ready = [*np.sort(rng.uniform(0.3, 1, 11)), 1.0]
    gradients = [Gradient(float(rng.integers(1e5, 9e6)), share) for share in ready]
    knobs = Knobs(fusion_bytes=1e9, cycle_sec=0.03, sent_share=0.5)
    cost = Line(2e-3, 1 / bytes_per_sec)
    took = scale_model.reduced_after_sec(
        gradients, 0.5, cost, lambda size: busy_share * cost(size), knobs
    )
    expected = simulate_by_ticks(gradients, 0.5, cost, busy_share, knobs)
    assert took == pytest.approx(expected, abs=3e-3)


def test_what_overlaps_costs_nothing_and_what_is_last_costs_its_own_time():
    gradients = (Gradient(1e6, 0.5), Gradient(2e6, 1.0))
    knobs, busy = Knobs(), scale_model.never_busy
    work = Work(gradients, compute_sec=1.0, update_sec=0.25)
    step = scale_model.step_sec(work, 2, Line(0.0, 1e-8), busy, knobs)
    assert step == pytest.approx(1.0 + 0.02 + 0.25, abs=1e-9)
    # Nothing overlaps where the processor is busy with the all-reduce.
    step = scale_model.step_sec(work, 2, Line(0.0, 1e-8), lambda size: 1e-8 * size, knobs)
    assert step == pytest.approx(1.0 + 0.03 + 0.25, abs=1e-9)


def test_knobs_change_what_is_sent_and_how_often():
    work = Work((Gradient(1e8, 1.0),), compute_sec=1.0, update_sec=0.5)
    cost, busy = Line(0.0, 1e-8), scale_model.never_busy
    of = lambda **knobs: scale_model.step_sec(work, 2, cost, busy, Knobs(**knobs))  # noqa: E731
    assert of() == pytest.approx(2.5)
    assert of(sent_share=0.5) == pytest.approx(2.0)
    assert of(accumulate_steps=3) == pytest.approx(4.5)
    share = scale_model.efficiency(work, 2, cost, busy, Knobs(accumulate_steps=3))
    assert share == pytest.approx(3.5 / 4.5)


def test_the_link_of_a_measured_ring_takes_as_long_as_it_did():
    cost = Line(6e-3, 3e-9)
    link = scale_inputs.Measured(4, cost, cost, ()).link()
    for size in (0, 1e6, 1e8):
        assert scale_model.ring_sec(size, 4, link) == pytest.approx(cost(size))


def test_work_is_read_from_runs_without_their_warm_up():
    def run(own_ms, rest_ms):
        steps = np.arange(1, 13)
        own = np.array([9e9] * 1 + [own_ms] * 11, float)
        return {
            "perf/step_time_ms": Curve(steps, own + rest_ms),
            "perf/slowest_worker_step_ms": Curve(steps, own),
        }

    gradients = scale_inputs.gradients_in([((2, 3), 0.5), ((5,), 1.0)])
    work = scale_inputs.read_alone([run(100, 20), run(300, 40)], gradients)
    assert work.gradients == (Gradient(24, 0.5), Gradient(20, 1.0))
    assert (work.compute_sec, work.update_sec) == pytest.approx((0.2, 0.03))
    assert work.slowest_sec(2) == pytest.approx(0.3 - 0.2 / 4)


def allreduce_result(sizes, latency_sec, bytes_per_sec):
    rows = [
        {
            "bytes": size,
            "step_time_ms": {"p50": 1000 * (latency_sec + size / bytes_per_sec)},
            "cpu_sec": size / 1e9,
        }
        for size in sizes
    ]
    order = [{"name": "w", "shape": [2, 3], "ready": 1.0}]
    *buffers, gradients = rows
    allreduce = {"workers": 2, **gradients, "buffers": buffers, "order": order}
    return {"passes": {"allreduce": allreduce}}


def test_a_link_is_read_from_the_results_of_its_allreduces():
    result = allreduce_result([4096, 2**20, 2**26], 0.01, 1e7)
    measured = scale_inputs.read_allreduces([result, result])
    assert measured.cost(5e6) == pytest.approx(0.51)
    assert measured.busy(1e9) == pytest.approx(1, rel=1e-3)
    assert measured.gradients == (Gradient(24, 1.0),)
    with pytest.raises(UserError, match="all-reduce result: must be"):
        scale_inputs.read_allreduces([{"passes": {}}])


@pytest.mark.parametrize(("fused_ms", "expected_sec"), [(15_000, 15.0), (1_000, 10.01)])
def test_what_is_fused_takes_the_time_of_its_copies_too(fused_ms, expected_sec):
    """All gradients take longer than one tensor as large; where that was noise, not less."""
    result = allreduce_result([4096, 2**20, 2**26, 10**8], 0.01, 1e7)
    result["passes"]["allreduce"]["step_time_ms"]["p50"] = fused_ms
    cost = scale_inputs.read_allreduces([result]).cost
    assert cost(1e8) == pytest.approx(expected_sec)
    assert cost(0) == pytest.approx(0.01)


def test_flags_mean_what_the_model_takes():
    work = Work(tuple(Gradient(2.0**24, ready) for ready in (0.4, 0.5, 0.7)), compute_sec=1.0)
    of = lambda choice: benchmark_link.model_of(choice, work)  # noqa: E731
    assert of("") == (work, Knobs(128 * 2**20, 0.1, 1.0, 1))
    assert of("--gradient_compression=float16") == of("")
    in_buckets, knobs = of("--gradient_compression=bfloat16 --accumulate_steps=4")
    assert in_buckets.gradients == (Gradient(2.0**25, 0.5), Gradient(2.0**24, 0.7))
    assert knobs == Knobs(0, 0.001, 1.0, 4)
    assert of("--gradient_reduction=adasum --fusion_threshold_mb=1")[0] == work
    assert of("--fusion_threshold_mb=1")[1].fusion_bytes == 2**20
    assert of("HOROVOD_CYCLE_TIME=5")[1].cycle_sec == 0.005
    assert benchmark_link.flags_of_reduction(
        "--gradient_reduction=adasum HOROVOD_CYCLE_TIME=5"
    ) == ("--gradient_reduction=adasum",)


def test_flags_that_all_choices_share_are_taken_too():
    work = Work(tuple(Gradient(2.0**24, ready) for ready in (0.4, 0.5, 0.7)), compute_sec=1.0)
    timed = scale_inputs.Measured(2, Line(0.1, 1e-7), Line(0, 0), work.gradients)
    by_flag, plain = "--gradient_compression=bfloat16", ()
    (alone,) = benchmark_link.compare(work, {(by_flag,): timed}, {by_flag: [1.0]})
    (shared,) = benchmark_link.compare(work, {plain: timed}, {"": [1.0]}, [by_flag])
    (without,) = benchmark_link.compare(work, {plain: timed}, {"": [1.0]})
    assert shared["predicted_sec"] == alone["predicted_sec"] != without["predicted_sec"]


def test_the_gradients_of_vgg16_are_its_138_million():
    gradients = published_scaling.vgg16()
    assert sum(each.bytes for each in gradients) == 4 * 138_357_544
    assert gradients[0].bytes == 4 * (4096 * 1000 + 1000)
    assert [each.ready for each in gradients] == sorted(each.ready for each in gradients)
    assert gradients[-1].ready == pytest.approx(1)


def test_more_workers_slower_links_and_faster_gpus_are_less_efficient():
    point = published_scaling.POINTS[-1]
    gradients = published_scaling.vgg16()
    share = published_scaling.predict(point, gradients)
    slower = point._replace(between=published_scaling.network(10))
    more = point._replace(gpus=(2048, 1))
    faster = point._replace(images_per_sec=2 * point.images_per_sec)
    for other in (slower, more, faster):
        assert published_scaling.predict(other, gradients) < share < 1
    # All of its bytes travel 2 (n - 1) / n times over the slowest link: no step is shorter.
    least_sec = 2 * 511 / 512 * 4 * 138_357_544 / (25e9 / 8)
    assert share < 64 / 154 / least_sec
    assert math.isclose(published_scaling.predict(point._replace(gpus=(512, 512)), gradients), 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--delay_ms=1"], "--delay_ms: must be given with --mbit"),
        (["--", "--accumulate_steps", "4"], "flags: must each be --NAME=VALUE, got '4'"),
        (["--", "--flagfile=x"], "flags: must each be --NAME=VALUE, got '--flagfile=x'"),
        (
            ["--try=--accumulate_steps 4"],
            "--try: must each be --NAME=VALUE, or NAME=VALUE, got '4'",
        ),
    ],
)
def test_what_the_model_would_not_know_is_refused(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_link.py", "--out=x", *arguments])
    with pytest.raises(SystemExit):
        benchmark_link._parse()
    assert capsys.readouterr().err.endswith(f"{said}\n")


def test_flags_and_variables_are_tried(monkeypatch):
    choice = "--accumulate_steps=4 HOROVOD_CYCLE_TIME=5"
    arguments = ["--out=x", "--try=", f"--try={choice}", "--", "--precision=bfloat16"]
    monkeypatch.setattr(sys, "argv", ["benchmark_link.py", *arguments])
    assert benchmark_link._parse().choices == ["", choice]
