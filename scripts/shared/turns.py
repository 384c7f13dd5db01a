"""Commands that train in turns and are stopped in between: for benchmark_workers.py."""

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import process_tree

from trainer.errors import UserError

_WARM_UP_STEPS = 3  # Or more: see --log_every.
_LOOK_SEC = 0.05


class Launch:
    """A command that was started, and all that runs below it."""

    def __init__(self, command: Sequence[str], folder: Path, cores: set[int] | None) -> None:
        """Starts the command.

        Args:
          command: without --logdir and --result_json.
          folder: a new folder for its errors, logs and result.
          cores: those that it may use; None: all.
        """
        folder.mkdir()
        self._metrics = folder / "logs" / "metrics.jsonl"
        self._result = folder / "result.json"
        self._errors = folder / "errors"
        self._command = [
            *command,
            f"--logdir={self._metrics.parent}",
            f"--result_json={self._result}",
        ]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=errors
            )
        if cores is not None:  # Before it looks for its cores, which takes it longer than this.
            os.sched_setaffinity(self._process.pid, cores)

    def has_ended(self) -> bool:
        """Returns whether the command has ended.

        Raises:
          UserError: it has failed.
        """
        status = self._process.poll()
        if status:
            errors = self._errors.read_text(encoding="utf-8", errors="replace")
            raise UserError(f"{' '.join(self._command)}: status {status}\n{errors}")
        return status is not None

    def result(self) -> dict[str, Any]:
        """The `result` of its --result_json; the command must have ended."""
        return json.loads(self._result.read_text(encoding="utf-8"))["result"]

    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl for the steps that have been written up to now."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in found if "perf/step_time_ms" in line]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the command and all processes below it."""
        if self._process.poll() is None:
            pid = self._process.pid
            process_tree.send(number, (pid, *process_tree.below(pid)))

    def go_on(self, seconds: float) -> None:
        """Lets the command go on for some seconds, or to its end, and stops it."""
        self.send(signal.SIGCONT)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.has_ended():
            time.sleep(_LOOK_SEC)
        self.send(signal.SIGSTOP)

    def close(self) -> None:
        """Kills the command and all processes below it."""
        self.send(signal.SIGKILL)
        self._process.wait()


class Way:
    """Launches that train at the same time, and are stopped outside their turns."""

    def __init__(self, images_per_step: int) -> None:
        """Begins without any launch.

        Args:
          images_per_step: of each launch that will be added.
        """
        self.launches: list[Launch] = []
        self._images_per_step = images_per_step
        self._turns: list[tuple[float, float]] = []  # When each began and ended, as time.time().

    def warm_up(self) -> None:
        """Waits until all launches have run their first steps, and stops them."""
        while any(len(launch.steps()) < _WARM_UP_STEPS for launch in self.launches):
            self._watch_for(10 * _LOOK_SEC)
        self._send(signal.SIGSTOP)

    def take_turn(self, seconds: float) -> None:
        """Lets the launches go on for some seconds, and stops them."""
        began = time.time()
        self._send(signal.SIGCONT)
        self._watch_for(seconds)
        self._send(signal.SIGSTOP)
        self._turns.append((began, time.time()))

    def finish(self) -> None:
        """Ends the launches when all steps of their turns are in metrics.jsonl."""
        self._send(signal.SIGCONT)
        while any(launch.steps()[-1]["wall_time"] < self._turns[-1][1] for launch in self.launches):
            self._watch_for(10 * _LOOK_SEC)
        for launch in self.launches:
            launch.close()

    def images_per_sec(self) -> list[float]:
        """Throughput of all launches together, in each turn.

        Raises:
          UserError: a turn was too short for a step.
        """
        of_launches = [self._rates(launch) for launch in self.launches]
        return [sum(rates) for rates in zip(*of_launches, strict=True)]

    def _rates(self, launch: Launch) -> list[float]:
        steps = [(step["wall_time"], step["perf/step_time_ms"] / 1000) for step in launch.steps()]
        rates = []
        for began, ended in self._turns:
            whole = [took for end, took in steps if began <= end - took and end <= ended]
            if not whole:
                raise UserError("--turn_sec: must be longer: no step was whole")
            rates.append(self._images_per_step / statistics.median(whole))
        return rates

    def _send(self, number: signal.Signals) -> None:
        for launch in self.launches:
            launch.send(number)

    def _watch_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(launch.has_ended() for launch in self.launches):
                raise UserError("--turn_sec, --rounds: the training has ended before all turns")
            time.sleep(_LOOK_SEC)
