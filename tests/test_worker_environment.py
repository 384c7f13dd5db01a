"""The part of the environment that reaches training when scripts of this project start it."""

import json
import subprocess
import sys

from processes import ROOT, environment

SHOW = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
EXTRA = {
    "MY_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HOROVOD_CYCLE_TIME": "7",
    "WANTED": "yes",
    "FI_PROVIDER": "efa",
    "SLIM_HOROVOD_PASS": "WANTED",
}


def passed_on(*command):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(**EXTRA),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[0])


def check(found):
    assert "secret" not in found.values()
    assert (found["HOROVOD_CYCLE_TIME"], found["WANTED"]) == ("7", "yes")
    assert found["FI_PROVIDER"] == "efa"
    assert {"PATH", "PYTHONPATH"} <= set(found)


def test_secrets_are_not_passed_on():
    check(passed_on("scripts/worker_environment.py", *SHOW))


def test_nor_by_supervise(tmp_path):
    check(passed_on("scripts/supervise.py", "--", *SHOW, f"--logdir={tmp_path}"))


def test_train_sh_starts_its_workers_through_it():
    text = (ROOT / "scripts" / "train.sh").read_text(encoding="utf-8")
    starts = [line for line in text.splitlines() if "horovodrun -np" in line]
    assert len(starts) == 2
    assert all("worker_environment.py" in line for line in starts)
