#!/usr/bin/env python3
"""What communication costs workers on one host, and what the loop costs around a step.

The same network on synthetic images in four ways:

  alone      a process without Horovod for each worker, all at once, each on its share of the cores
  together   the same with horovodrun, so with communication
  loop       one worker on all cores, with every step in TensorBoard
  step       --benchmark_passes=train_step: what `loop` takes without the loop

Within minutes a machine's speed changes by more than what is looked for here. So two ways take
turns of seconds, in which the other one is stopped: `alone` and `together`, `loop` and `step`.
Processes of the same program differ, too: all are launched several times. Steps that a turn's end
fell into do not count; of the others the median (of a turn, for alone and together). The result is
the median ratio of neighbours. A machine's workers slow each other down without communication, too,
by memory and caches; that is in `alone`. It takes 20 minutes on a machine that does nothing else:

  scripts/benchmark_workers.py -- --precision=bfloat16
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import process_tree, program

from trainer import timing
from trainer.errors import UserError
from trainer.machine import cores

_HOROVODRUN = str(Path(sys.executable).with_name("horovodrun"))
_TRAINER = (sys.executable, "-m", "trainer", "--dataset=synthetic")
_ENDLESS = 1_000_000  # Steps: the turns end before.
_WARM_UP_STEPS = 3  # Or more: see --log_every.
_LOOK_SEC = 0.05
_LONGEST_TURN_SEC = 20  # Stopped workers miss Gloo's messages; it waits for 30 s.


def _share(worker: int, workers: int) -> set[int]:
    """The cores that are this worker's, where all share those of this process evenly."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // workers)
    return set(cores[worker * each : (worker + 1) * each])


class Launch:
    """A command that was started, and all that runs below it."""

    def __init__(self, command: Sequence[str], folder: Path, cores: set[int] | None) -> None:
        """Starts it.

        Args:
          command: without --logdir and --result_json.
          folder: will be made, for what it says and writes.
          cores: where it is to stay; None: anywhere.
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
        """Whether it has ended.

        Raises:
          UserError: it has failed.
        """
        status = self._process.poll()
        if status:
            errors = self._errors.read_text(encoding="utf-8", errors="replace")
            raise UserError(f"{' '.join(self._command)}: status {status}\n{errors}")
        return status is not None

    def result(self) -> dict[str, Any]:
        """What it has found. It has ended."""
        return json.loads(self._result.read_text(encoding="utf-8"))["result"]

    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl for the steps so far; they come there some at a time."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in found if "perf/step_time_ms" in line]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all that runs."""
        if self._process.poll() is None:
            pid = self._process.pid
            process_tree.send(number, (pid, *process_tree.below(pid)))

    def go_on(self, seconds: float) -> None:
        """Lets it go on for so long, or to its end, and stops it."""
        self.send(signal.SIGCONT)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.has_ended():
            time.sleep(_LOOK_SEC)
        self.send(signal.SIGSTOP)

    def close(self) -> None:
        """Ends all that runs, at once."""
        self.send(signal.SIGKILL)
        self._process.wait()


class Way:
    """Launches that train at once. They are stopped but in their turns."""

    def __init__(self, images_per_step: int) -> None:
        """It has no launch yet; `images_per_step` is of each that will be added."""
        self.launches: list[Launch] = []
        self._images_per_step = images_per_step
        self._turns: list[tuple[float, float]] = []  # When each began and ended, as time.time().

    def warm_up(self) -> None:
        """Returns when all have taken their first steps, and stops them."""
        while any(len(launch.steps()) < _WARM_UP_STEPS for launch in self.launches):
            self._watch_for(10 * _LOOK_SEC)
        self._send(signal.SIGSTOP)

    def take_turn(self, seconds: float) -> None:
        """Lets them go on for so long."""
        began = time.time()
        self._send(signal.SIGCONT)
        self._watch_for(seconds)
        self._send(signal.SIGSTOP)
        self._turns.append((began, time.time()))

    def finish(self) -> None:
        """Ends them when all steps of their turns are in metrics.jsonl."""
        self._send(signal.SIGCONT)
        while any(launch.steps()[-1]["wall_time"] < self._turns[-1][1] for launch in self.launches):
            self._watch_for(10 * _LOOK_SEC)
        for launch in self.launches:
            launch.close()

    def images_per_sec(self) -> list[float]:
        """Of all launches, in each turn.

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


class Contest:
    """The ways to train."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._launches = 0

    def _launch(
        self, *flags: str, batch_size: int, by: Sequence[str] = (), cores: set[int] | None = None
    ) -> Launch:
        self._launches += 1
        command = [*by, *_TRAINER, f"--batch_size={batch_size}", *self._options.flags, *flags]
        return Launch(command, self._folder / str(self._launches), cores)

    def alone_and_together(self) -> dict[str, list[float]]:
        """Images per second of `alone` and of `together`, in each of their turns."""
        workers, size = self._options.workers, self._options.batch_size
        endless = (f"--steps={_ENDLESS}", "--checkpoint_every=0", "--log_every=10")
        alone, together = Way(size), Way(workers * size)
        with contextlib.ExitStack() as running:

            def start(way: Way, **options: Any) -> None:
                way.launches.append(self._launch(*endless, batch_size=size, **options))
                running.callback(way.launches[-1].close)

            for worker in range(workers):
                start(alone, cores=_share(worker, workers))
            alone.warm_up()
            start(together, by=[_HOROVODRUN, "-np", str(workers)])
            together.warm_up()
            for number in range(self._options.rounds):
                for way in (together, alone) if number % 2 else (alone, together):
                    way.take_turn(self._options.turn_sec)
            for way in (together, alone):  # First those that can't be stopped for long.
                way.finish()
            return {"alone": alone.images_per_sec(), "together": together.images_per_sec()}

    def loop_and_step(self) -> dict[str, list[float]]:
        """Images per second of one worker that has all cores: its loop, and its train step."""
        steps, size = self._options.steps, self._options.batch_size * self._options.workers
        warm_up = timing.warmup_steps(steps)
        with contextlib.ExitStack() as running:

            def start(*flags: str) -> Launch:
                launch = self._launch(*flags, batch_size=size)
                running.callback(launch.close)
                launch.go_on(self._options.turn_sec)
                return launch

            loop = start(f"--steps={steps}", "--checkpoint_every=0")
            step = start(
                "--benchmark",
                "--benchmark_passes=train_step",
                f"--benchmark_burn_in={warm_up}",
                f"--benchmark_steps={steps - warm_up}",
            )
            while not (loop.has_ended() and step.has_ended()):
                for launch in (loop, step):
                    launch.go_on(self._options.turn_sec)
        durations_sec = {
            "loop": [line["perf/step_time_ms"] / 1000 for line in loop.steps()[warm_up:]],
            "step": step.result()["passes"]["train_step"]["durations_sec"],
        }
        return {name: [size / self._whole_step(each)] for name, each in durations_sec.items()}

    def _whole_step(self, durations_sec: Sequence[float]) -> float:
        """The median step of those that were not interrupted by another one's turn.

        Raises:
          UserError: none was: they took no turns; or most of them were.
        """
        whole = [step for step in durations_sec if step < self._options.turn_sec]
        if len(whole) == len(durations_sec):
            raise UserError("--steps: must be more: loop and step took no turns")
        if len(whole) < len(durations_sec) / 2:
            raise UserError("--turn_sec: must be longer: most steps were interrupted")
        return statistics.median(whole)


def _end_all() -> None:
    """Also what a launch has left behind: stopped workers would stay so for ever."""
    while left := process_tree.below(os.getpid()):
        process_tree.send(signal.SIGKILL, left)
        time.sleep(_LOOK_SEC)


def _leave(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def main() -> None:
    """Lets them run in turn and prints images per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds",
        type=program.at_least(1),
        default=6,
        help="turns of alone and together in a launch; %(default)s",
    )
    parser.add_argument(
        "--turn_sec",
        type=program.at_least(1, float),
        default=15,
        help=f"up to {_LONGEST_TURN_SEC}; %(default)s",
    )
    parser.add_argument(
        "--launches", type=program.at_least(1), default=3, help="of each way; %(default)s"
    )
    parser.add_argument(
        "--steps",
        type=program.at_least(2),
        default=40,
        help="of loop and step in a launch, with those to warm up; %(default)s",
    )
    parser.add_argument("--workers", type=int, default=cores.available_cores(), help="%(default)s")
    parser.add_argument(
        "--batch_size", type=program.at_least(1), default=16, help="per worker; %(default)s"
    )
    parser.add_argument("flags", nargs="*", help="of the trainer, after --")
    options = parser.parse_args()
    available = cores.available_cores()
    if not 1 <= options.workers <= available:
        parser.error(f"--workers: must be 1 to {available}, a core for each, got {options.workers}")
    if options.turn_sec > _LONGEST_TURN_SEC:
        parser.error(f"--turn_sec: must be at most {_LONGEST_TURN_SEC}, got {options.turn_sec}")
    for number in (signal.SIGTERM, signal.SIGHUP):  # What runs would never end by itself.
        signal.signal(number, _leave)
    process_tree.adopt_orphans()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_end:
        at_end.callback(_end_all)
        contest = Contest(options, Path(folder))
        rates: dict[str, list[float]] = {}
        for _ in range(options.launches):
            for take_turns in (contest.alone_and_together, contest.loop_and_step):
                for name, each in take_turns().items():
                    rates.setdefault(name, []).extend(each)
                    print(f"{name}: {statistics.median(each):.2f} images/s", flush=True)
    ratios = {
        f"{name} / {of}": [one / other for one, other in zip(rates[name], rates[of], strict=True)]
        for name, of in (("together", "alone"), ("loop", "step"))
    }
    medians = {name: statistics.median(each) for name, each in ratios.items()}
    result = {**vars(options), "images_per_sec": rates, "ratios": ratios, "medians": medians}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    program.run(main)
