"""Exact statistics of step times, from a clock that is told what to say."""

import numpy as np
import pytest

from trainer import timing


class FakeClock:
    """Says one instant after the other."""

    def __init__(self, *instants_sec):
        self._instants_sec = iter(instants_sec)

    def __call__(self):
        return next(self._instants_sec)


def test_step_times_run_from_end_to_end():
    clock = timing.StepClock(FakeClock(10.0, 10.5, 12.0))
    clock.start()
    assert [clock.finish_step(), clock.finish_step()] == [0.5, 1.5]


def test_a_pause_is_taken_out_of_its_step_and_nothing_is_lost():
    # start, pause from 11 to 14, end of step 1, end of step 2, pause from 17 to 18, end of step 3
    clock = timing.StepClock(FakeClock(10, 11, 14, 15, 17, 17, 18, 20))
    clock.start()
    with clock.pause():
        pass
    steps = [clock.finish_step(), clock.finish_step()]
    with clock.pause():
        pass
    steps.append(clock.finish_step())
    assert steps == [2, 2, 2]
    assert clock.paused_sec == 4
    assert sum(steps) + clock.paused_sec == 20 - 10


def test_a_pause_counts_when_it_fails():
    clock = timing.StepClock(FakeClock(0, 1, 3, 4))
    clock.start()
    with pytest.raises(OSError, match="full"), clock.pause():
        raise OSError("full")
    assert clock.finish_step() == 2


def test_start_is_required():
    with pytest.raises(RuntimeError, match="start"):
        timing.StepClock().finish_step()


def test_images_per_sec_is_images_over_seconds():
    # 2 x 32 images in 0.4 s: 160. The mean of 320 and 107 images/s would be 213.
    assert timing.images_per_sec(32, [0.1, 0.3]) == pytest.approx(160)


def test_equal_durations_have_no_spread():
    statistics = timing.summarize([0.1] * 7)
    assert statistics.sd == 0
    assert statistics.mean == statistics.p50 == statistics.p99 == pytest.approx(100)


def test_statistics_are_numpys():
    durations_sec = np.random.default_rng(0).gamma(2.0, 0.1, 101)
    statistics = timing.summarize(durations_sec.tolist())
    ms = 1000 * durations_sec
    expected = [
        ms.mean(),
        ms.std(),
        *np.percentile(ms, [50, 90, 99]),
        ms.min(),
        ms.max(),
    ]
    np.testing.assert_allclose(statistics, expected, rtol=1e-12)


def test_no_steps_have_no_statistics():
    with pytest.raises(ValueError, match="no step"):
        timing.summarize([])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (5, 2), (20, 10), (1000, 10)])
def test_warmup_leaves_something_to_count(steps, warmup):
    assert timing.warmup_steps(steps) == warmup < steps


def test_phases_are_told_once_with_what_came_before_them():
    phases = timing.PhaseTimes({"imports": 2.5}, FakeClock(10.0, 11.0, 11.5, 15.5))
    phases.finish("graph")
    phases.finish("broadcast")
    assert phases.end("first step") == (
        "first step after 8.0 s: imports 2.5, graph 1.0, broadcast 0.5, first step 4.0"
    )
    phases.finish("graph")  # Of another size of images.
    assert phases.end("first step") is None  # After going back to a checkpoint.
    expected = {"imports": 2.5, "graph": 1.0, "broadcast": 0.5, "first step": 4.0}
    assert phases.durations_sec == expected
