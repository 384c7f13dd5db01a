"""The console: messages of a run to the person who watches it."""

import collections
import math
import sys
from typing import Protocol, TextIO

from tqdm import tqdm

from trainer.plan import Plan
from trainer.telemetry.step import Step

_RUNNING_STEPS = 100  # Of which the running top-1 is the mean.
_LINES_BELOW_HEADING = 20
# The columns, each with the space before it: they have 60, and the step before them at most 20.
_MOST_OF_STEP = 20
_COLUMNS = {
    "epoch": 7,
    "loss": 8,
    "top-1": 7,
    "running": 9,
    "rate": 9,
    "images/s": 10,
    "ETA": 10,
}


class Console(Protocol):
    """Prints messages for the person who started the run."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def report_step(self, step: Step) -> None:
        """Counts a step; every so many steps, prints the progress of the run."""

    def close(self) -> None:
        """Ends the progress bar, if there is one."""


class NullConsole:
    """The console of ranks other than 0."""

    def say(self, text: str) -> None:
        del text

    def report_step(self, step: Step) -> None:
        del step

    def close(self) -> None:
        pass


class TextConsole:
    """Prints a line every `log_every` steps, and on a terminal a progress bar below.

    Each line has the step, the epoch, and of that step the cross-entropy, the top-1 and the
    learning rate; besides, the mean top-1 of the latest 100 steps, the throughput since the line
    before, and the time that is left at that rate. It fits into 80 columns; where steps have more
    than 7 digits, without the number of all steps.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        first_step: int,
        stream: TextIO | None = None,
    ) -> None:
        """Starts the progress bar, where `stream` is a terminal.

        Args:
          plan: plan of the run.
          first_step: first step that will be reported; they count from 1.
          stream: file to print to, which has no errors of its own (see `streams.never_wait`);
            None: the standard output.
        """
        stream = sys.stdout if stream is None else stream
        self._plan = plan
        self._stream = stream
        self._durations_sec: list[float] = []
        self._top1: collections.deque[float] = collections.deque(maxlen=_RUNNING_STEPS)
        self._lines = 0
        self._bar = tqdm(
            total=plan.total_steps,
            initial=first_step - 1,
            unit="step",
            file=stream,
            disable=not stream.isatty(),
            dynamic_ncols=True,
        )

    def say(self, text: str) -> None:
        if self._bar.disable:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def report_step(self, step: Step) -> None:
        self._durations_sec.append(step.duration_sec)
        self._top1.append(step.metrics.top1)
        self._bar.update()
        if step.number % self._plan.log_every and step.number != self._plan.total_steps:
            return
        total = f"/{self._plan.total_steps}"
        name_width = len(f"step {self._plan.total_steps}{total}")
        if name_width > _MOST_OF_STEP:
            name_width, total = name_width - len(total), ""
        if self._lines % _LINES_BELOW_HEADING == 0:
            heading = "".join(f"{name:>{width}}" for name, width in _COLUMNS.items())
            self.say(" " * name_width + heading)
        self._lines += 1
        mean_sec = math.fsum(self._durations_sec) / len(self._durations_sec)
        self._durations_sec = []
        values = (
            _shorten(self._plan.epoch_at(step.number), 2, _COLUMNS["epoch"]),
            # Without weight decay, which evaluations do not have either.
            _as_loss(step.metrics.cross_entropy),
            f"{step.metrics.top1:.3f}",
            f"{math.fsum(self._top1) / len(self._top1):.3f}",
            f"{step.learning_rate:.3g}",
            _shorten(self._plan.global_batch_size / mean_sec, 1, _COLUMNS["images/s"]),
            _as_time((self._plan.total_steps - step.number) * mean_sec),
        )
        row = "".join(
            f"{value:>{width}}" for value, width in zip(values, _COLUMNS.values(), strict=True)
        )
        self.say(f"{f'step {step.number}{total}':{name_width}}{row}")

    def close(self) -> None:
        self._bar.close()
        self._stream.flush()


def _as_loss(loss: float) -> str:
    """Formats a loss in at most 7 characters, where it is not negative."""
    if loss < 100:
        return f"{loss:.4f}"
    return f"{loss:.1f}" if loss < 1e5 else f"{loss:.1e}"


def _shorten(value: float, decimals: int, width: int) -> str:
    """Formats a number with as many decimals as leave a space in a column of some width."""
    texts = [f"{value:.{count}f}" for count in range(decimals, -1, -1)]
    return next((text for text in texts if len(text) < width), f"{value:.0e}")


def _as_time(seconds: float) -> str:
    """Formats a time as H:MM:SS; from 100 hours on in days, up to 1,000 with hours."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    if hour >= 100:
        return f"{hour // 24}d {hour % 24}h" if hour < 24_000 else f"{hour // 24}d"
    return f"{hour}:{minute:02}:{second:02}"


def tell_phase(text: str, *, rank: int) -> None:
    """Prints, on rank 0, what a run begins to do before its first step, which can take minutes."""
    if rank == 0:
        print(text, flush=True)


def create_console(rank: int, plan: Plan, *, first_step: int) -> Console:
    """Returns the console of one worker of a run: that of rank 0 prints, the others don't."""
    return TextConsole(plan, first_step=first_step) if rank == 0 else NullConsole()
