"""The console: messages of a run to the person who watches it."""

import math
import sys
from typing import Protocol, TextIO

from tqdm import tqdm

from trainer.plan import Plan


class Console(Protocol):
    """Prints messages for the person who started the run."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def report_step(self, step: int, duration_sec: float, *, loss: float, top1: float) -> None:
        """Counts a step; every so many steps, prints the progress of the run."""

    def close(self) -> None:
        """Ends the progress bar, if there is one."""


class NullConsole:
    """The console of ranks other than 0."""

    def say(self, text: str) -> None:
        del text

    def report_step(self, step: int, duration_sec: float, *, loss: float, top1: float) -> None:
        del step, duration_sec, loss, top1

    def close(self) -> None:
        pass


class TextConsole:
    """Prints a line every `log_every` steps, and on a terminal a progress bar below."""

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

    def report_step(self, step: int, duration_sec: float, *, loss: float, top1: float) -> None:
        self._durations_sec.append(duration_sec)
        self._bar.update()
        if step % self._plan.log_every and step != self._plan.total_steps:
            return
        mean_sec = math.fsum(self._durations_sec) / len(self._durations_sec)
        self._durations_sec = []
        self.say(
            f"step {step}/{self._plan.total_steps}  epoch {self._plan.epoch_at(step):.2f}  "
            f"loss {loss:.4f}  top-1 {top1:.3f}  "
            f"{self._plan.global_batch_size / mean_sec:.1f} images/s  "
            f"{1000 * mean_sec:.1f} ms/step  "
            f"ETA {_as_time((self._plan.total_steps - step) * mean_sec)}"
        )

    def close(self) -> None:
        self._bar.close()
        self._stream.flush()


def _as_time(seconds: float) -> str:
    """Formats a time as H:MM:SS."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


def create_console(rank: int, plan: Plan, *, first_step: int) -> Console:
    """Returns the console of one worker of a run: that of rank 0 prints, the others don't."""
    return TextConsole(plan, first_step=first_step) if rank == 0 else NullConsole()
