"""Step times and their statistics. Pure Python; the clock is a parameter."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple


class StepClock:
    """Times steps from the end of one to the end of the next, so that no time between them is lost.

    Pauses (a checkpoint, an evaluation) are taken out of the step that they fall into and are
    summed apart: the sum of all step times and pauses is the wall time since `start`.

    Attributes:
      paused_sec: time in pauses since `start`, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._step_began: float | None = None
        self.paused_sec = 0.0

    def start(self) -> None:
        """Begins the first step."""
        self._step_began = self._clock()
        self.paused_sec = 0.0

    def finish_step(self) -> float:
        """Ends a step and begins the next.

        Returns:
          the duration of the step, seconds.

        Raises:
          RuntimeError: `start` was not called.
        """
        if self._step_began is None:
            raise RuntimeError("StepClock.start() must be called before finish_step()")
        now = self._clock()
        duration = now - self._step_began
        self._step_began = now
        return duration

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Takes what happens inside out of the current step's time."""
        began = self._clock()
        try:
            yield
        finally:
            paused = self._clock() - began
            self.paused_sec += paused
            if self._step_began is not None:
                self._step_began += paused


class PhaseTimes:
    """The times of what a process does one after the other before its first step.

    Attributes:
      durations_sec: duration of each phase that has ended, seconds, by its name.
    """

    def __init__(
        self, earlier: Mapping[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begins the next phase.

        Args:
          earlier: durations of the phases up to now, seconds.
          clock: a clock, in seconds.
        """
        self.durations_sec = dict(earlier)
        self._clock = clock
        self._began = clock()
        self._has_ended = False

    def finish(self, phase: str) -> None:
        """Ends a phase, which began at the end of the one before; nothing after the last one."""
        if self._has_ended:
            return
        now = self._clock()
        self.durations_sec[phase] = self.durations_sec.get(phase, 0.0) + now - self._began
        self._began = now

    def end(self, phase: str) -> str | None:
        """Ends the last phase; returns a line about all, and None from the second call on."""
        if self._has_ended:
            return None
        self.finish(phase)
        self._has_ended = True
        total = math.fsum(self.durations_sec.values())
        parts = ", ".join(f"{name} {sec:.1f}" for name, sec in self.durations_sec.items())
        return f"first step after {total:.1f} s: {parts}"


class StepTimeStatistics(NamedTuple):
    """Statistics of step times, milliseconds. `sd` is the population standard deviation."""

    mean: float
    sd: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value below which `share` (0 to 1) of `ordered` lies, by linear interpolation."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def summarize(durations_sec: Sequence[float]) -> StepTimeStatistics:
    """Returns the statistics of `durations_sec`: at least one duration, in seconds."""
    if not durations_sec:
        raise ValueError("no step was timed")
    ordered = sorted(1000 * duration for duration in durations_sec)
    mean = statistics.fmean(ordered)
    return StepTimeStatistics(
        mean=mean,
        sd=statistics.pstdev(ordered, mean),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        min=ordered[0],
        max=ordered[-1],
    )


def images_per_sec(images_per_step: int, durations_sec: Sequence[float]) -> float:
    """Returns all images / all seconds: not the mean of the rates, which would be higher."""
    return images_per_step * len(durations_sec) / math.fsum(durations_sec)


def warmup_steps(steps: int) -> int:
    """Returns how many steps at the start of a run are logged but not counted.

    The first steps optimize the graph, allocate memory and fill the caches. 10 are left out, or
    half of a shorter run.
    """
    return min(10, steps // 2)
