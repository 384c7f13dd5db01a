#!/usr/bin/env python3
"""Times resnet_v2_50 here against Keras' ResNet50V2 and against the same network in PyTorch.

In each case every contestant is a process of its own. They take turns, A B C A B C ..., and only
one of them runs at a time, so that whatever else the machine does hits all alike; what counts is
the median step. Before a case is timed, all must have the same number of
parameters and of floating-point operations; where one has not, the table says so.

The peers' packages go into an environment of their own.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared import program

from peers import contestants as contestants_lib
from peers.contestants import OURS, Contestant

from trainer.machine.load import LoadMeter
from trainer.process import files

_ROOT = Path(__file__).resolve().parent.parent
_PEERS = _ROOT / "scripts" / "peers"
_PAUSE_SEC = 0.3  # Threads of the contestant before go on spinning for a while.
_FLOPS_TOLERANCE = 1e-6
_QUIET_CORES = 0.1
_LEGEND = (
    "images/s of the median step; in brackets: ours by theirs; then the most main memory that the "
    "process has had"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The amount of work that is timed.

    Attributes:
      batch_size: images per step.
      image_size: height and width, pixels.
      rounds: turns of each contestant.
      steps: timed steps per turn.
    """

    batch_size: int
    image_size: int
    rounds: int
    steps: int


def make_environment(folder: Path) -> Path:
    """Makes or renews the peers' environment where needed; returns its Python."""
    requirements = _ROOT / "requirements" / "peers.txt"
    stamp = folder / "stamp"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    python = folder / "bin" / "python"
    if not stamp.exists() and folder.exists() and any(folder.iterdir()):
        sys.exit(f"compare_peers.py: --venv: must be new or made by this program, got {folder}")
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        print(f"sets up {folder} ...", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        stamp.touch()  # What is half made, too, was made here.
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True
        )
        stamp.write_text(wanted, encoding="ascii")
    return python


def time_case(
    contestants: Mapping[str, Contestant], plan: Plan, task: str, precision: str
) -> dict[str, Any]:
    """Prepares all contestants, lets them run in turn, and returns their figures."""
    case = {
        "task": task,
        "precision": precision,
        "batch_size": plan.batch_size,
        "image_size": plan.image_size,
    }
    figures = {name: each.ask({"prepare": case}) for name, each in contestants.items()}
    durations_sec: dict[str, list[float]] = {
        name: [] for name, answer in figures.items() if "error" not in answer
    }
    cores = len(os.sched_getaffinity(0))
    load = LoadMeter(cores)
    for _ in range(plan.rounds):
        for name in list(durations_sec):
            time.sleep(_PAUSE_SEC)
            answer = contestants[name].ask({"run": plan.steps})
            if "error" in answer:
                figures[name] |= answer
                del durations_sec[name]
            else:
                durations_sec[name] += answer["durations_sec"]
                figures[name]["peak_memory_bytes"] = answer["peak_memory_bytes"]
    foreign_cores = cores * (load.others_share() or 0.0)
    for name, durations in durations_sec.items():
        median = statistics.median(durations)
        figures[name] |= {
            "durations_sec": durations,
            "median_sec": median,
            "images_per_sec": plan.batch_size / median,
        }
    _compare(figures)
    return {
        "task": task,
        "precision": precision,
        "foreign_cores": foreign_cores,
        "contestants": figures,
    }


def _compare(figures: dict[str, dict[str, Any]]) -> None:
    """Adds our throughput as a multiple of each contestant's, and whether both compute as much."""
    ours = figures[OURS]
    for each in figures.values():
        if "images_per_sec" not in each or "images_per_sec" not in ours:
            continue
        each["ours_to_this"] = ours["images_per_sec"] / each["images_per_sec"]
        work = each["gflops_per_image"] / ours["gflops_per_image"]
        each["is_same_size"] = (
            each["parameters"] == ours["parameters"] and abs(work - 1) < _FLOPS_TOLERANCE
        )


def format_table(cases: list[dict[str, Any]]) -> str:
    """A Markdown table of throughput and memory, and of ours as a multiple of each throughput."""
    titles = [f"{case['task']} {case['precision']}" for case in cases]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in cases[0]["contestants"]:
        cells = []
        for case in cases:
            each = case["contestants"][name]
            if "images_per_sec" not in each:
                cells.append("failed")
                continue
            ratio = "" if name == OURS else f" ({each.get('ours_to_this', 0):.2f}x)"
            mark = "" if each.get("is_same_size", True) else " *"
            memory = f", {each['peak_memory_bytes'] / 2**30:.1f} GiB"
            cells.append(f"{each['images_per_sec']:.1f}{ratio}{mark}{memory}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", _LEGEND]
    busiest = max(case["foreign_cores"] for case in cases)
    if busiest > _QUIET_CORES:
        lines.append(
            f"NOT A QUIET MACHINE: other programs used up to {busiest:.1f} cores meanwhile. "
            "Programs whose threads wait for each other suffer most; do not quote these figures"
        )
    for case in cases:
        for name, each in case["contestants"].items():
            if "error" in each:
                lines.append(f"{name}, {case['task']} {case['precision']}: {each['error']}")
            elif not each.get("is_same_size", True):
                lines.append(
                    f"* {name}, {case['task']} {case['precision']}: {each['parameters']:,} "
                    f"parameters, {each['gflops_per_image']:.3f} GFLOP per image; ours has "
                    f"{case['contestants'][OURS]['gflops_per_image']:.3f}"
                )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 15 minutes on 2 cores")
    parser.add_argument(
        "--batch_size", type=program.at_least(1), help="images per step (quick: 16, else 32)"
    )
    parser.add_argument("--image_size", type=program.at_least(1), default=224, help="pixels (224)")
    parser.add_argument(
        "--rounds", type=program.at_least(1), help="turns of each (quick: 2, else 10)"
    )
    parser.add_argument("--steps", type=program.at_least(1), help="steps per turn (2; on a GPU 20)")
    parser.add_argument("--out", type=program.path, default=_ROOT / "runs" / "compare_peers")
    parser.add_argument("--venv", type=program.path, default=_ROOT / ".venv-peers")
    return parser.parse_args()


def main() -> int:
    """Sets up, times all cases, and writes compare_peers.json, .md and .png."""
    options = parse_arguments()
    began = time.monotonic()
    peers_python = make_environment(options.venv.absolute())
    folder = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for contestant_file in _PEERS.glob("*.py"):
        for log in folder.glob(f"{contestant_file.stem}_*.log"):
            log.unlink()
    describe = "import dataclasses, json; from trainer.machine import environment; "
    describe += "print(json.dumps(dataclasses.asdict(environment.describe())))"
    environment = json.loads(
        subprocess.run(
            [sys.executable, "-c", describe],
            cwd=_ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    )
    gpu = environment["device"] != environment["cpu"]
    plan = Plan(
        batch_size=options.batch_size or (16 if options.quick else 32),
        image_size=options.image_size,
        rounds=options.rounds or (2 if options.quick else 10),
        steps=options.steps or (20 if gpu else 2),
    )
    cases = []
    for precision in ("float32", "bfloat16"):
        for task in ("forward", "train"):
            print(f"{task}, {precision} ... ({time.monotonic() - began:.0f} s)", flush=True)
            contestants = contestants_lib.start(peers_python, folder, gpu=gpu)
            try:
                cases.append(time_case(contestants, plan, task, precision))
            finally:
                for contestant in contestants.values():
                    contestant.close()
    result = {**dataclasses.asdict(plan), "environment": environment, "cases": cases}
    output = folder / "compare_peers.json"
    files.write_text(output, json.dumps(result, indent=2) + "\n")
    table = format_table(cases)
    files.write_text(output.with_suffix(".md"), table + "\n")
    subprocess.run(
        [peers_python, _PEERS / "chart.py", output, output.with_suffix(".png")], check=True
    )
    print(f"\n{table}\n\n{output.parent}: {time.monotonic() - began:.0f} s in all")
    failed = ["error" in each for case in cases for each in case["contestants"].values()]
    return 1 if any(failed) else 0


if __name__ == "__main__":
    program.run(main)
