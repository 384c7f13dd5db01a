#!/usr/bin/env python3
r"""Times steps of two workers over a slow link, in turns, beside what the model of scale says.

Each worker is a host of its own, a network namespace with a core; a process carries the packets
between them at the rate and with the delay that are given. It needs root. Without --mbit both are
of this host, without a link. A round trains with each choice of flags, in a new order; once before,
and once at the end, two processes without Horovod train at the same time, and the all-reduce is
timed, of each kind that is tried: these go into the model, the steps do not.

  scripts/benchmark_link.py --mbit 100 --delay_ms 1 --try= --try=--gradient_compression=float16 \
    --out link-100 -- --precision=bfloat16 --image_size=64 --batch_size=16
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import program, run_logs, scale_inputs, scale_model, two_hosts
from shared.scale_model import Knobs, Work

from trainer import timing
from trainer.config.update import BUCKET_MB, HOROVOD_BUFFER_MB
from trainer.errors import UserError
from trainer.process import files, settings
from trainer.process.keeper import unless_nohup

_TRAINER = ("-m", "trainer", "--dataset=synthetic", "--checkpoint_every=0", "--log_every=5")
_HOROVODRUN = str(Path(sys.executable).with_name("horovodrun"))
_WORKERS = 2
_EARLY_CYCLE_MS = 1.0  # Of one that ends early: see scripts/horovod/patches/speed/01.


class Contest:
    """Measures, and keeps what comes out in a folder."""

    def __init__(self, options: argparse.Namespace, hosts: Sequence[two_hosts.Host]) -> None:
        """Begins; without hosts the workers are of this one, and horovodrun starts them."""
        self._options = options
        self._hosts = hosts
        self._made = 0

    def _place(self) -> Path:
        self._made += 1
        place: Path = self._options.out / f"{self._made:03}"
        place.mkdir()
        return place

    def train_alone(self) -> list[Path]:
        """Trains in two processes at the same time, each on its core, without Horovod."""
        cores = sorted(os.sched_getaffinity(0))
        places = [self._place() for _ in range(_WORKERS)]
        steps = f"--steps={self._options.alone_steps}"
        # The model adds the batches of an update itself.
        flags = [*self._options.flags, "--accumulate_steps=1"]
        command = [sys.executable, *_TRAINER, steps, *flags]
        running = [
            subprocess.Popen(
                ["taskset", "-c", str(cores[number % len(cores)]), *command, f"--logdir={place}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, place in enumerate(places)
        ]
        try:
            for each in running:
                _, errors = each.communicate()
                if each.returncode:
                    raise UserError(f"{' '.join(command)}: status {each.returncode}\n{errors}")
        finally:
            for each in running:
                each.kill()
        return places

    def time_allreduce(self, flags_of_reduction: Sequence[str]) -> dict[str, Any]:
        """Times the all-reduce over the link, with some flags more; returns the result."""
        place = self._place()
        path = place / "result.json"
        flags = ("--benchmark", "--benchmark_passes=allreduce", f"--result_json={path}")
        runs = ("--benchmark_burn_in=1", f"--benchmark_steps={self._options.allreduce_steps}")
        arguments = ["-m", "trainer", *flags, *runs, *self._options.flags, *flags_of_reduction]
        self._run(place, arguments)
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def train(self, choice: str) -> Path:
        """Trains on both hosts with a choice; returns the folder of the logs."""
        place = self._place()
        steps = f"--steps={self._options.steps}"
        flags = [word for word in choice.split() if word.startswith("-")]
        variables = dict(word.split("=", 1) for word in choice.split() if word not in flags)
        arguments = [*_TRAINER, steps, f"--logdir={place}", *self._options.flags, *flags]
        self._run(place, arguments, variables)
        return place

    def _run(
        self, place: Path, arguments: list[str], variables: Mapping[str, str] | None = None
    ) -> None:
        log = place / "said.txt"
        variables = variables or {}
        if self._hosts:
            two_hosts.run_workers(self._hosts, arguments, variables=variables, log=log)
        else:
            # The cores that both have alone: each worker binds itself to one of them.
            cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:_WORKERS]))
            command = ["taskset", "-c", cores, _HOROVODRUN, "-np", str(_WORKERS), sys.executable]
            with log.open("w", encoding="utf-8") as said:
                environment = {**os.environ, **variables}
                done = subprocess.run(
                    [*command, *arguments], stdout=said, stderr=said, env=environment, check=False
                )
            two_hosts.check_ended([done.returncode], log)
        for path in place.glob("model.ckpt-*"):  # Of each run, hundreds of MB.
            path.unlink()


def flags_of_reduction(choice: str) -> tuple[str, ...]:
    """Returns the flags of a choice that change how gradients are reduced: each is timed."""
    return tuple(word for word in choice.split() if word.startswith("--gradient_"))


def model_of(choice: str, work: Work) -> tuple[Work, Knobs]:
    """Returns what a choice of flags and variables means for the model.

    What the trainer reduces itself (graph/reduction.py) goes in buckets of its own, each of which
    ends Horovod's cycle. The time of a buffer is measured with the choice's own types: so that
    all count their bytes in float32.
    """
    words = dict(word.lstrip("-").partition("=")[::2] for word in choice.split())
    in_buckets = (
        words.get("gradient_compression") == "bfloat16"
        or words.get("gradient_reduction") == "adasum"
    )
    default_mb = BUCKET_MB if in_buckets else HOROVOD_BUFFER_MB
    most_bytes = 2**20 * float(words.get("fusion_threshold_mb", default_mb))
    knobs = Knobs(
        fusion_bytes=most_bytes,
        cycle_sec=float(words.get("HOROVOD_CYCLE_TIME", settings.CPU_CYCLE_MS)) / 1000,
        accumulate_steps=int(words.get("accumulate_steps", 1)),
    )
    if in_buckets:
        buckets = scale_model.put_into_buckets(work.gradients, most_bytes)
        work = dataclasses.replace(work, gradients=buckets)
        knobs = dataclasses.replace(knobs, fusion_bytes=0, cycle_sec=_EARLY_CYCLE_MS / 1000)
    return work, knobs


def median_step_sec(place: Path) -> float:
    """Returns the median time of the steps of a run, without those to warm up."""
    steps_ms = run_logs.read_curves(place)["perf/step_time_ms"].values
    return statistics.median(steps_ms[timing.warmup_steps(len(steps_ms)) :]) / 1000


def compare(
    work: Work,
    measured: Mapping[tuple[str, ...], scale_inputs.Measured],
    steps_sec: Mapping[str, list[float]],
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Returns a row for each choice of flags: what was measured, and what the model says.

    Args:
      work: what a step computes.
      measured: the all-reduce by its `flags_of_reduction`.
      steps_sec: measured times of steps by choice.
      flags: those of the trainer that all choices share.
    """
    rows = []
    for choice, each in steps_sec.items():
        reduced, knobs = model_of(" ".join([*flags, choice]), work)
        timed = measured[flags_of_reduction(choice)]
        predicted = scale_model.step_sec(reduced, _WORKERS, timed.cost, timed.busy, knobs)
        median = statistics.median(each)
        rows.append(
            {
                "flags": choice,
                "measured_sec": median,
                "of_rounds_sec": each,
                "batches_per_sec": knobs.accumulate_steps / median,
                "predicted_sec": predicted,
                "error": predicted / median - 1,
                "allreduce_start_sec": timed.cost.start_sec,
                "allreduce_sec_per_byte": timed.cost.sec_per_byte,
            }
        )
    return rows


def _leave(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    some = program.at_least(0, float)
    parser.add_argument(
        "--mbit", type=program.at_least(1, float), help="each way; none: both are of this host"
    )
    parser.add_argument("--delay_ms", type=some, default=0.0, help="each way; %(default)s")
    parser.add_argument(
        "--try",
        dest="choices",
        action="append",
        metavar="CHOICE",
        help="flags to try, and variables as NAME=VALUE; may be repeated",
    )
    for name, default, meaning in (
        ("rounds", 2, "of all choices"),
        ("steps", 10, "of a run"),
        ("alone_steps", 20, "of a run without others"),
        ("allreduce_steps", 4, "timed runs of each size"),
    ):
        parser.add_argument(
            f"--{name}", type=program.at_least(1), default=default, help=f"{meaning}; %(default)s"
        )
    parser.add_argument("--out", type=program.path, required=True, help="a new folder")
    parser.add_argument("flags", nargs="*", help="of the trainer, after --")
    options = parser.parse_args()
    if options.delay_ms and options.mbit is None:
        parser.error("--delay_ms: must be given with --mbit")
    for name, words, kinds in (
        ("flags", options.flags, "--NAME=VALUE"),
        ("--try", " ".join(options.choices or ()).split(), "--NAME=VALUE, or NAME=VALUE"),
    ):
        for word in words:
            is_flag = word.startswith("--") and not word.startswith("--flagfile")
            if not is_flag and (name == "flags" or not re.match("[A-Z_]+=", word)):
                parser.error(f"{name}: must each be {kinds}, got {word!r}")
    return options


def _print(
    where: str,
    work: Work,
    measured: Mapping[tuple[str, ...], scale_inputs.Measured],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    print(
        f"{where}; alone {work.compute_sec:.3f} s and {work.update_sec:.3f} s for the update; "
        "all-reduce (MB of float32):"
    )
    for flags, each in measured.items():
        print(
            f"{' '.join(flags) or 'as it is':40}{1000 * each.cost.start_sec:9.1f} ms +"
            f"{1e-6 / max(each.cost.sec_per_byte, 1e-15):9.2f} MB/s"
        )
    print(f"{'flags':40}{'measured s':>12}{'predicted s':>12}{'error':>8}{'batches/s':>11}")
    for row in rows:
        print(
            f"{row['flags'] or 'as it is':40}{row['measured_sec']:12.3f}"
            f"{row['predicted_sec']:12.3f}{100 * row['error']:7.1f}%{row['batches_per_sec']:11.3f}"
        )


def main() -> None:
    """Measures in turns, and prints a table."""
    options = _parse()
    for number in unless_nohup((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, _leave)  # So that the namespaces are removed.
    choices = options.choices or [""]
    steps_sec: dict[str, list[float]] = {choice: [] for choice in choices}
    alone: list[Path] = []
    reductions = dict.fromkeys(flags_of_reduction(choice) for choice in choices)
    timed: dict[tuple[str, ...], list[dict[str, Any]]] = {flags: [] for flags in reductions}
    with contextlib.ExitStack() as stack:
        hosts: Sequence[two_hosts.Host] = ()
        if options.mbit is not None:
            link = two_hosts.two_hosts(mbit_per_sec=options.mbit, delay_ms=options.delay_ms)
            hosts = stack.enter_context(link)
        options.out.mkdir(parents=True)
        contest = Contest(options, hosts)
        for turn in range(options.rounds + 1):
            if turn in (0, options.rounds):
                alone += contest.train_alone()
                for flags in reductions:
                    timed[flags].append(contest.time_allreduce(flags))
            if turn < options.rounds:
                for choice in choices if turn % 2 == 0 else choices[::-1]:
                    steps_sec[choice].append(median_step_sec(contest.train(choice)))
                    print(f"{choice or 'as it is'}: {steps_sec[choice][-1]:.3f} s", flush=True)
    measured = {flags: scale_inputs.read_allreduces(each) for flags, each in timed.items()}
    work = scale_inputs.read_alone(
        [run_logs.read_curves(each, scale_inputs.TAGS) for each in alone],
        next(iter(measured.values())).gradients,
    )
    rows = compare(work, measured, steps_sec, options.flags)
    where = f"{options.mbit:g} Mbit/s, {options.delay_ms:g} ms" if hosts else "one host"
    _print(where, work, measured, rows)
    content = {"mbit": options.mbit, "delay_ms": options.delay_ms, "rows": rows}
    files.write_text(options.out / "result.json", json.dumps(content, indent=2))


if __name__ == "__main__":
    program.run(main)
