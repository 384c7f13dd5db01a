#!/usr/bin/env python3
"""What communication costs workers on one host, and what the loop costs around a step.

The same network on synthetic images in four ways, which take turns; each is a launch of its own:

  alone      a process without Horovod for each worker, all at once, each on its share of the cores
  together   the same with horovodrun, so with communication
  loop       one worker on all cores, with every step in TensorBoard
  step       --benchmark_passes=train_step: what `loop` takes without the loop

What counts are the median steps. A machine's workers slow each other down without communication,
too, by memory and caches; that is in `alone`. Run it on a machine that does nothing else, in the
project's environment:

  scripts/benchmark_workers.py -- --precision=bfloat16
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import program

from trainer import session

_HOROVODRUN = str(Path(sys.executable).with_name("horovodrun"))
_TRAINER = (sys.executable, "-m", "trainer", "--dataset=synthetic")


def _share(worker: int, workers: int) -> set[int]:
    """The cores that are this worker's, where all share those of this process evenly."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // workers)
    return set(cores[worker * each : (worker + 1) * each])


def _run(commands: list[list[str]], results: list[Path], *, confine: bool) -> list[dict[str, Any]]:
    """Runs the commands at once, and returns what they wrote."""
    started = []
    for number, command in enumerate(commands):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if confine:  # Before it looks for its cores, which takes it longer than this.
            os.sched_setaffinity(process.pid, _share(number, len(commands)))
        started.append(process)
    try:
        for process in started:
            _, errors = process.communicate()
            if process.returncode:
                command = " ".join(process.args)
                sys.exit(f"benchmark_workers.py: {command}: status {process.returncode}\n{errors}")
    finally:
        for process in started:
            process.terminate()  # The others of one that failed, or all of them at Ctrl-C.
    return [json.loads(path.read_text(encoding="utf-8"))["result"] for path in results]


class Contest:
    """The ways to train."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._launches = 0

    def _command(self, *flags: str, batch_size: int) -> tuple[list[str], Path]:
        """A command, and the file that its result will be in."""
        self._launches += 1
        result = self._folder / f"{self._launches}.json"
        return [
            *_TRAINER,
            f"--batch_size={batch_size}",
            f"--result_json={result}",
            *self._options.flags,
            *flags,
        ], result

    def _train(self, batch_size: int) -> tuple[list[str], Path]:
        logdir = self._folder / f"logs{self._launches}"
        steps = f"--steps={self._options.steps}"
        return self._command(
            steps, f"--logdir={logdir}", "--checkpoint_every=0", batch_size=batch_size
        )

    def alone(self) -> float:
        """Images per second of all workers."""
        size = self._options.batch_size
        commands, results = zip(
            *(self._train(size) for _ in range(self._options.workers)), strict=True
        )
        found = _run(list(commands), list(results), confine=True)
        return sum(size / each["step_time_ms"]["p50"] * 1000 for each in found)

    def together(self) -> float:
        """Images per second of all workers."""
        size, workers = self._options.batch_size, self._options.workers
        command, result = self._train(size)
        (found,) = _run([[_HOROVODRUN, "-np", str(workers), *command]], [result], confine=False)
        return workers * size / found["step_time_ms"]["p50"] * 1000

    def loop(self) -> float:
        """Images per second of one worker."""
        size = self._options.batch_size * self._options.workers
        command, result = self._train(size)
        (found,) = _run([command], [result], confine=False)
        return size / found["step_time_ms"]["p50"] * 1000

    def step(self) -> float:
        """Images per second of one worker's train step."""
        size = self._options.batch_size * self._options.workers
        command, result = self._command(
            "--benchmark",
            "--benchmark_passes=train_step",
            f"--benchmark_steps={self._options.steps}",
            "--benchmark_burn_in=2",
            batch_size=size,
        )
        (found,) = _run([command], [result], confine=False)
        return size / found["passes"]["train_step"]["step_time_ms"]["p50"] * 1000


def main() -> None:
    """Lets them run in turn and prints images per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=program.at_least(1), default=3, help="launches of each; %(default)s"
    )
    parser.add_argument(
        "--steps", type=program.at_least(1), default=12, help="per launch; %(default)s"
    )
    parser.add_argument(
        "--workers", type=int, default=session.available_cores(), help="%(default)s"
    )
    parser.add_argument(
        "--batch_size", type=program.at_least(1), default=16, help="per worker; %(default)s"
    )
    parser.add_argument("flags", nargs="*", help="of the trainer, after --")
    options = parser.parse_args()
    cores = session.available_cores()
    if not 1 <= options.workers <= cores:
        parser.error(f"--workers: must be 1 to {cores}, a core for each, got {options.workers}")
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(options, Path(folder))
        ways = {
            way.__name__: way
            for way in (contest.alone, contest.together, contest.loop, contest.step)
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                found[name].append(way())
                print(f"{name}: {found[name][-1]:.2f} images/s", flush=True)
    median = {name: statistics.median(each) for name, each in found.items()}
    ratios = {
        "together / alone": median["together"] / median["alone"],
        "loop / step": median["loop"] / median["step"],
    }
    print(json.dumps({**vars(options), "images_per_sec": found, **ratios}, indent=2))


if __name__ == "__main__":
    program.run(main)
