#!/usr/bin/env python3
"""Kills a training run at random, again and again, and checks what comes of it.

  scripts/soak.py --kills 20 --out DIR -- horovodrun -np 2 python -m trainer --steps=2000 [flags]

The command is run twice, with --deterministic and a --logdir in DIR: once undisturbed, once by
supervise.py while its workers and its launcher are killed (SIGKILL) at random times, some of them
(--in_saves) while worker 0 saves a checkpoint. In the end the weights of both must be
bit-identical, each step must be in TensorBoard's events and metrics.jsonl once, and no process and
no half-written file may be left. The run must be longer than the kills.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shared import process_tree, program

from trainer.checkpoints import layout
from trainer.config import flag_file
from trainer.errors import UserError
from trainer.process import files, start_up

_LAUNCHER = "the launcher"
# Within this time from its beginning, a save of a small network ends.
_SAVE_SEC = 0.05
_SUPERVISE = Path(__file__).resolve().parent / "supervise.py"


def _say(text: str) -> None:
    print(f"soak: {time.strftime('%H:%M:%S')} {text}", flush=True)


def run_straight(command: Sequence[str], logdir: Path) -> None:
    """Runs the command undisturbed; its output goes to a file beside the folder."""
    with open(logdir.with_suffix(".log"), "w", encoding="utf-8") as log:
        done = subprocess.run(
            [*command, f"--logdir={logdir}"], stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise UserError(f"the undisturbed run failed: see {log.name}")


def run_with_kills(
    command: Sequence[str],
    logdir: Path,
    *,
    kills: int,
    longest_sec: float,
    in_saves: float,
    dice: random.Random,
) -> int:
    """Runs the command by supervise.py, and kills what it starts; returns how often.

    Args:
      command: the command, without --logdir.
      logdir: folder of the run.
      kills: how often to kill.
      longest_sec: longest time between two kills; the shortest is 1 s.
      in_saves: share of the kills that hit worker 0 while it saves.
      dice: source of what is random.
    """
    supervise = [str(_SUPERVISE), "--max_restarts=50", "--first_pause_sec=0.5", "--"]
    with open(logdir.with_suffix(".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *supervise, *command, f"--logdir={logdir}"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    killed = 0
    try:
        while killed < kills and process.poll() is None:
            try:  # A command that ends is not waited for.
                process.wait(timeout=dice.uniform(1.0, longest_sec))
            except subprocess.TimeoutExpired:
                if dice.random() >= in_saves:
                    killed += _kill_one(process.pid, dice)
                elif _wait_for_save(process, logdir):
                    time.sleep(dice.uniform(0.0, _SAVE_SEC))
                    killed += _kill(process.pid, "worker 0")
        process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        raise UserError(f"the run that was killed {killed} times failed: see {log.name}")
    return killed


def _wait_for_save(process: subprocess.Popen[bytes], logdir: Path) -> bool:
    """Waits until worker 0 begins a save; returns False where the run ends without another."""
    while process.poll() is None:
        saver = process_tree.workers_below(process.pid).get(0)
        end_sec = time.monotonic() + 1.0  # Another worker may have ended it.
        while saver is not None and time.monotonic() < end_sec:
            if any(logdir.glob(f".saving.{saver}-*{files.SUFFIX}")):
                return True
            time.sleep(0.001)
        time.sleep(0.001)
    return False


def _kill_one(pid: int, dice: random.Random) -> bool:
    """Kills a worker, or the launcher, below `pid`; False where there is none just now."""
    workers = process_tree.workers_below(pid)
    if not workers:
        return False
    return _kill(pid, dice.choice([*(f"worker {rank}" for rank in sorted(workers)), _LAUNCHER]))


def _kill(pid: int, name: str) -> bool:
    """Kills a worker below `pid`, or the launcher, by its name; False where it is gone."""
    names = {f"worker {rank}": worker for rank, worker in process_tree.workers_below(pid).items()}
    names[_LAUNCHER] = next(iter(process_tree.children_of(pid)), 0)
    if not names.get(name):
        return False
    try:
        os.kill(names[name], signal.SIGKILL)
    except ProcessLookupError:
        return False
    _say(f"killed {name}")
    return True


def find_faults(straight: Path, soaked: Path) -> list[str]:
    """Differences between the two runs, and files and processes that were left behind."""
    faults = [f"{name} differs" for name in different_variables(straight, soaked)]
    lines = (soaked / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "train/loss" in line]
    last = json.loads((straight / "status.json").read_text(encoding="utf-8"))["step"]
    if steps != list(range(1, last + 1)):
        faults.append(f"metrics.jsonl has {len(steps)} steps, not each of {last} once")
    if event_steps(soaked) != list(range(1, last + 1)):
        faults.append(f"TensorBoard shows other steps than each of {last} once")
    log = soaked / "supervise.log"
    if log.exists() and "left behind" in log.read_text(encoding="utf-8"):
        faults.append("processes were left behind: see supervise.log")
    endings = (".json", ".jsonl", ".index", ".data-00000-of-00001", ".log")
    known = (layout.STATE, layout.BEST, flag_file.NAME)
    for path in soaked.iterdir():
        is_events = path.name.startswith("events.")
        if not (is_events or path.name.endswith(endings) or path.name in known):
            faults.append(f"{path} was left behind")
    return faults


def different_variables(straight: Path, soaked: Path) -> list[str]:
    """Names of the variables that the newest checkpoints of two folders don't agree on."""
    with start_up.without_the_unused():
        import tensorflow as tf  # Here, since it takes seconds.

    newest = [tf.train.latest_checkpoint(str(folder)) for folder in (straight, soaked)]
    if None in newest:
        raise UserError(f"the command must leave a checkpoint, and left {newest}")
    if Path(newest[0]).name != Path(newest[1]).name:
        return [f"the newest checkpoint ({newest})"]
    one, other = (tf.train.load_checkpoint(prefix) for prefix in newest)
    names = sorted({*one.get_variable_to_shape_map(), *other.get_variable_to_shape_map()})
    return [
        name for name in names if one.get_tensor(name).tobytes() != other.get_tensor(name).tobytes()
    ]


def event_steps(folder: Path) -> list[int]:
    """Steps of the loss as TensorBoard shows them."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return [point.step for point in events.Scalars("train/loss")]


def main() -> int:
    """Soaks the command that the arguments name; returns 1 where there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=program.at_least(0), default=20, help="how many; %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills; %(default)s")
    parser.add_argument(
        "--longest_sec",
        type=program.at_least(1, float),
        default=60.0,
        help="between two kills; %(default)s",
    )
    parser.add_argument(
        "--in_saves",
        type=program.at_least(0, float),
        default=0.0,
        help="share of the kills that hit worker 0 while it saves; %(default)s",
    )
    parser.add_argument("--out", type=program.path, required=True, help="folder for both runs; new")
    parser.add_argument("command", nargs="+", help="what to run, after --; without --logdir")
    arguments = parser.parse_args()
    if not shutil.which(arguments.command[0]):
        raise UserError(f"{arguments.command[0]}: no such program")
    if arguments.out.exists():
        raise UserError(f"--out: must be new, got {arguments.out}")
    arguments.out.mkdir(parents=True)
    straight, soaked = arguments.out / "straight", arguments.out / "soaked"
    command = [*arguments.command, "--deterministic"]
    _say("the undisturbed run")
    run_straight(command, straight)
    _say("the run with kills")
    killed = run_with_kills(
        command,
        soaked,
        kills=arguments.kills,
        longest_sec=arguments.longest_sec,
        in_saves=arguments.in_saves,
        dice=random.Random(arguments.seed),
    )
    faults = find_faults(straight, soaked)
    for fault in faults:
        _say(fault)
    if killed < arguments.kills:
        faults.append("too few kills")
        _say(f"the run was over after {killed} kills: make it longer")
    if not faults:
        _say(f"{killed} kills: the same weights, each step once, nothing left behind")
    return 1 if faults else 0


if __name__ == "__main__":
    program.run(main)
