"""The loop that times runs, and prints a line after every tenth and one at the end."""

import datetime
import time
from collections.abc import Callable

from trainer import timing

Say = Callable[[str], None]

_LINE_EVERY = 10


def time_runs(
    run_once: Callable[[], object],
    label: str,
    *,
    burn_in: int,
    steps: int,
    say: Say,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, ...]:
    """Times runs.

    Args:
      run_once: function that makes one run and returns when it is over.
      label: name in the closing line, `<label> across <steps> steps, <mean> +/- <sd> sec / batch`.
      burn_in: number of runs before the timed ones.
      steps: number of timed runs.
      say: function that prints a line.
      clock: function that returns the time, seconds.

    Returns:
      the duration of each timed run, seconds: at least one; fewer than `steps` where Ctrl-C ended
      the loop.

    Raises:
      KeyboardInterrupt: Ctrl-C came before any run was timed.
    """
    durations_sec: list[float] = []
    step_clock = timing.StepClock(clock)
    try:
        for _ in range(burn_in):
            run_once()
        step_clock.start()
        for step in range(1, steps + 1):
            run_once()
            durations_sec.append(step_clock.finish_step())
            if step % _LINE_EVERY == 0:
                with step_clock.pause():
                    say(f"{_now()}: step {step}, duration = {durations_sec[-1]:.3f}")
    except KeyboardInterrupt:
        if not durations_sec:
            raise
        say(f"interrupted: what follows is partial, {len(durations_sec)} of {steps} steps")
    statistics = timing.summarize(durations_sec)
    say(
        f"{_now()}: {label} across {len(durations_sec)} steps, "
        f"{statistics.mean / 1000:.3f} +/- {statistics.sd / 1000:.3f} sec / batch"
    )
    return tuple(durations_sec)


def _now() -> str:
    return str(datetime.datetime.now())
