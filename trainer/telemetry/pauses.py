"""Pauses between steps: logged under tags of their own, and in no step's time."""

import contextlib
import time
from collections.abc import Iterator

from trainer.telemetry.writers.protocol import Writer
from trainer.timing import StepClock


class Pauses:
    """Measures pauses: all step times and all pauses add up to the wall time of the loop."""

    def __init__(self, clock: StepClock, writer: Writer) -> None:
        self._clock = clock
        self._writer = writer

    @contextlib.contextmanager
    def during(self, tag: str, step: int) -> Iterator[None]:
        """Excludes the time spent inside from the next step's time, and writes it as a scalar.

        Args:
          tag: tag of the scalar.
          step: number of the step before the pause.
        """
        before_sec = self._clock.paused_sec
        with self._clock.pause():
            yield
        paused_ms = 1000 * (self._clock.paused_sec - before_sec)
        self._writer.write(step, {tag: paused_ms}, wall_time=time.time())
