"""The timed loop, with a clock that is told what to say."""

import itertools
import re

import pytest

from trainer import timing
from trainer.benchmark import runs

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+"


class FakeDevice:
    """Runs take as long as they are told to; its clock knows."""

    def __init__(self, *durations_sec, interrupt_at=None):
        self.runs = 0
        self.now = 100.0
        self._durations_sec = itertools.cycle(durations_sec)
        self._interrupt_at = interrupt_at

    def run_once(self):
        self.runs += 1
        if self.runs == self._interrupt_at:
            raise KeyboardInterrupt
        self.now += next(self._durations_sec)

    def clock(self):
        return self.now


def time_runs(device, *, burn_in=0, steps, say=lambda line: None, label="Forward"):
    return runs.time_runs(
        device.run_once, label, burn_in=burn_in, steps=steps, say=say, clock=device.clock
    )


def test_a_tenth_and_three_tenths_of_a_second_are_160_images_per_sec():
    durations_sec = time_runs(FakeDevice(0.1, 0.3), steps=10)
    assert durations_sec == pytest.approx([0.1, 0.3] * 5)
    assert timing.images_per_sec(32, durations_sec) == pytest.approx(160)


def test_burn_in_is_run_but_not_timed():
    device = FakeDevice(0.25)
    assert time_runs(device, burn_in=3, steps=4) == (0.25,) * 4
    assert device.runs == 7


def test_lines_are_those_of_time_tensorflow_run():
    lines = []
    time_runs(FakeDevice(0.1, 0.3), steps=20, say=lines.append, label="Forward-backward")
    *steps, last = lines
    assert [int(re.fullmatch(TIME + r": step (\d+), duration = 0.300", s)[1]) for s in steps] == [
        10,
        20,
    ]
    assert re.fullmatch(
        TIME + r": Forward-backward across 20 steps, 0.200 \+/- 0.100 sec / batch", last
    )


def test_printing_is_not_timed():
    device = FakeDevice(0.5)

    def say_slowly(line):
        device.now += 60

    assert time_runs(device, steps=30, say=say_slowly) == (0.5,) * 30


def test_interrupted_it_keeps_what_was_measured_and_says_that_it_is_partial():
    lines = []
    device = FakeDevice(0.5, interrupt_at=6)
    assert time_runs(device, burn_in=2, steps=100, say=lines.append) == (0.5,) * 3
    assert lines[0] == "interrupted: what follows is partial, 3 of 100 steps"
    assert "Forward across 3 steps, 0.500 +/- 0.000 sec / batch" in lines[1]


def test_interrupted_before_anything_was_measured_it_has_no_figures():
    with pytest.raises(KeyboardInterrupt):
        time_runs(FakeDevice(0.5, interrupt_at=2), burn_in=2, steps=100)
