"""Makes the table of docs/recovery.md: every fault, on each of two workers, in every phase.

usage: PYTHONPATH=scripts:tests python tests/programs/fault_table.py OUT [PHASE...]

One run under scripts/supervise.py takes all of the faults, one after the other. A line tells how
a start ended and how soon; in the end the weights must be those of a run without faults.
"""

import datetime
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import soak
from faulty_runs import FAULTY, HOROVODRUN
from faulty_trainer import ACTIONS, PHASES
from processes import ROOT, environment

STEPS = 1000
FLAGS = [
    "--model=faulty_data:network",
    "--dataset=faulty_data:dataset",
    "--image_size=16",
    "--batch_size=8",
    "--augment=none",
    "--batch_norm_decay=0.9",
    "--log_every=50",
    "--checkpoint_every=10",
    f"--steps={STEPS}",
    "--eval_every_epochs=2",
    "--watchdog_seconds=5",
    "--deterministic",
]
SUPERVISE = [sys.executable, "scripts/supervise.py", "--max_restarts=50", "--first_pause_sec=0.01"]
PREEMPTED = 75


def run(command, log, **extra):
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.run(
            command, cwd=ROOT, env=environment(**extra), stdout=file, stderr=file, check=False
        ).returncode


def order(phases):
    """Queues of faults, by the name of the run that takes them.

    The last step's come last: nothing else can happen after it. A run that is asked to stop in it
    is complete, so that each of these faults has a run of its own.
    """
    queues = {"faulty": []}
    for action, rank, phase in itertools.product(ACTIONS, (0, 1), phases):
        is_end = (phase, action) == ("last step", "TERM")
        name = f"asked-{rank}" if is_end else "faulty"
        queues.setdefault(name, []).append({"phase": phase, "rank": rank, "action": action})
    for queue in queues.values():
        queue.sort(key=lambda fault: fault["phase"] == "last step")
    return queues


def run_with_faults(out, name, queue):
    """Runs until the run is finished: a preempted one is started again, as people do."""
    plan = out / "plan.json"
    plan.write_text(json.dumps({"queue": queue, "fired": 0}))
    command = [*SUPERVISE, "--", *HOROVODRUN, *FAULTY, *FLAGS]
    status = PREEMPTED
    while status == PREEMPTED:
        status = run(
            [*command, f"--logdir={out}/{name}"],
            out / f"{name}.log",
            FAULT_PLAN=str(plan),
            LAST_STEP=str(STEPS),
            SLIM_HOROVOD_PASS="FAULT_PLAN LAST_STEP",
        )
    left = json.loads(plan.read_text())["queue"]
    if status or left:
        sys.exit(f"{name} ended with status {status}; {len(left)} faults never happened")


def tell(out, name):
    """One line for each fault: when it was, what supervise.py says came next, and how soon."""
    messages = [
        (datetime.datetime.fromisoformat(line.split()[0]).timestamp(), line.split(maxsplit=1)[1])
        for line in (out / name / "supervise.log").read_text().splitlines()
    ]
    pattern = re.compile(r"FAULT ([\d.]+) (.*)")
    for line in (out / f"{name}.log").read_text().splitlines():
        if fault := pattern.search(line):
            fired = float(fault[1])
            when, what = next(
                (when, text)
                for when, text in messages
                if when >= fired - 1 and not re.fullmatch(r"start \d+", text)
            )
            print(f"{fault[2]:32} {max(0, when - fired):4.0f} s  {what}", flush=True)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    straight = [*HOROVODRUN, sys.executable, "-m", "trainer", *FLAGS, f"--logdir={out}/straight"]
    if run(straight, out / "straight.log"):
        sys.exit("the undisturbed run failed")
    for name, queue in order(sys.argv[2:] or PHASES).items():
        run_with_faults(out, name, queue)
        tell(out, name)
        faults = soak.find_faults(out / "straight", out / name)
        print("\n".join(faults) or f"{name}: the same weights, each step once, nothing left")


if __name__ == "__main__":
    main()
