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
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import process_tree, program
from shared.turns import Launch, Way

from trainer import timing
from trainer.errors import UserError
from trainer.process import host_cores, settings
from trainer.process.keeper import unless_nohup

_HOROVODRUN = str(Path(sys.executable).with_name("horovodrun"))
_TRAINER = (sys.executable, "-m", "trainer", "--dataset=synthetic")
_ENDLESS = 1_000_000  # Steps: the turns end before.
_LONGEST_TURN_SEC = 20
# Stopped workers miss Gloo's messages, for up to two turns: one ends a round, one begins the next.
_GLOO_WAITS_SEC = 120


def _share(worker: int, workers: int) -> set[int]:
    """The cores that are this worker's, where all share those of this process evenly.

    As `machine.cores.bind_worker` shares them among the workers of horovodrun.
    """
    cores = host_cores.in_order()[: host_cores.available_cores()]
    return set(host_cores.share(cores, worker, workers))


class Contest:
    """Runs the ways to train against each other, two at a time."""

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
            start(together, by=[_HOROVODRUN, "-np", str(workers)], cores=_share(0, 1))
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
        """The median duration of the steps that no turn of the other way has interrupted.

        Raises:
          UserError: no step was interrupted, so that there were no turns; or most steps were.
        """
        whole = [step for step in durations_sec if step < self._options.turn_sec]
        if len(whole) == len(durations_sec):
            raise UserError("--steps: must be more: loop and step took no turns")
        if len(whole) < len(durations_sec) / 2:
            raise UserError("--turn_sec: must be longer: most steps were interrupted")
        return statistics.median(whole)


def _leave(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def main() -> None:
    """Runs all ways in turn, and prints images per second and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
    available = host_cores.available_cores()
    parser.add_argument("--workers", type=int, default=available, help="%(default)s")
    parser.add_argument(
        "--batch_size", type=program.at_least(1), default=16, help="per worker; %(default)s"
    )
    parser.add_argument("flags", nargs="*", help="of the trainer, after --")
    options = parser.parse_args()
    if not 1 <= options.workers <= available:
        parser.error(f"--workers: must be 1 to {available}, a core for each, got {options.workers}")
    if options.turn_sec > _LONGEST_TURN_SEC:
        parser.error(f"--turn_sec: must be at most {_LONGEST_TURN_SEC}, got {options.turn_sec}")
    if settings.has_gpu():
        parser.error("must run without GPUs: the processes that are alone would share one")
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(_GLOO_WAITS_SEC))
    # What runs would never end by itself.
    for number in unless_nohup((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, _leave)
    process_tree.adopt_orphans()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_end:
        # Also what a launch has left behind: stopped workers would stay so for ever.
        at_end.callback(process_tree.end_below, os.getpid())
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
