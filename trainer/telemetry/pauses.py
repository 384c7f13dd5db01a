"""What happens between steps: told as tags of its own, and not in the time of any step."""

import contextlib
import time
from collections.abc import Iterator

from trainer.telemetry.writers.protocol import Writer
from trainer.timing import StepClock


class Pauses:
    """Pauses of a run: the sum of all step times and of all pauses is its loop's wall time."""

    def __init__(self, clock: StepClock, writer: Writer) -> None:
        self._clock = clock
        self._writer = writer

    @contextlib.contextmanager
    def during(self, tag: str, step: int) -> Iterator[None]:
        """Takes what happens inside out of the next step's time, and writes how long it took.

        Args:
          tag: names what happens.
          step: the step after which it does.
        """
        before_sec = self._clock.paused_sec
        with self._clock.pause():
            yield
        paused_ms = 1000 * (self._clock.paused_sec - before_sec)
        self._writer.write(step, {tag: paused_ms}, wall_time=time.time())
