"""scripts/supervise.py around commands that fail, stop and finish as they are told."""

import json
import os
import signal
import subprocess
import sys

import pytest
import supervise
from processes import ROOT, environment

from trainer.safety import lock_holder

pytestmark = pytest.mark.processes

# Counts its starts in a file, then does what the words say: one for each start.
COMMAND = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1].partition("=")[2])
folder.mkdir(exist_ok=True)
starts = folder / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
what = sys.argv[1 + len(starts.read_text())]

def put(name, **fields):
    (folder / name).write_text(json.dumps(fields))

if what == "no text":
    put("status.json", state="failed", step=3, reason=os.fsdecode(b"caf\\xe9: no class"))
    sys.exit(3)
if what == "progress":
    entry = {"step": 1, "epoch": 1.0, "examples": len(starts.read_text()), "saved_at": "",
             "files": [], "top1": None,
             "run": {"workers": 1, "global_batch_size": 1, "total_steps": 1, "train_examples": 1,
                     "fingerprint": "", "versions": {}, "config": {}}}
    put("checkpoints.json", format="slim-horovod checkpoints 1", checkpoints=[entry])
if what == "orphan":
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
if "away" in what:  # As when the folder is not mounted.
    (folder / "checkpoints.json").unlink()
if "mistaken" in what:
    sys.exit(2)
if what == "preempted":
    put("status.json", state="preempted", step=7, reason="asked")
    sys.exit(1)
if what == "finished":
    put("status.json", state="finished", step=9, reason=None)
    sys.exit(0)
if what == "saved and killed":
    put("status.json", state="preempted", step=7, reason="left by its launcher")
if what == "saved and crashed":
    put("status.json", state="preempted", step=7, reason="asked to stop by SIGTERM")
    os.kill(os.getpid(), signal.SIGSEGV)
if "killed" in what:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait":
    print("waiting", flush=True)
    time.sleep(1000)
put("status.json", state="failed", step=3, reason="no luck")
sys.exit(3)
"""

HASTY = """
import supervise
from shared import program
supervise._LEFT_BEHIND_SEC = {}
program.run(supervise.main)
"""


def command(folder, *what, program=("scripts/supervise.py",)):
    return [
        *(sys.executable, *program, "--max_restarts=2", "--first_pause_sec=0.05", "--"),
        *(sys.executable, "-c", COMMAND, f"--logdir={folder}", *what),
    ]


def run(folder, *what, **options):
    done = subprocess.run(
        command(folder, *what, **options),
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT}/scripts"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    messages = (folder / "supervise.log").read_text()
    return done.returncode, [line.split(maxsplit=1)[1] for line in messages.splitlines()]


def test_it_starts_again_after_failures(tmp_path):
    status, messages = run(tmp_path, "fails", "killed", "finished")
    assert status == 0
    assert messages == [
        "start 1",
        "start 1 ended with status 3 (no luck); failure 1 without progress; again in 0.05 s",
        "start 2",
        "start 2 ended with status 137; failure 2 without progress; again in 0.1 s",
        "start 3",
        "finished",
    ]


def test_it_gives_up_without_progress_and_says_so(tmp_path):
    status, messages = run(tmp_path, "fails", "fails", "fails", "finished")
    assert status == 1
    reason = "given up after 3 failures without progress: start 3 ended with status 3 (no luck)"
    assert messages[-1] == reason
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "failed",
        "step": 3,
        "reason": reason,
    }


def test_a_finished_run_that_can_not_go_on_has_failed(tmp_path):
    status, messages = run(tmp_path, "finished")
    (tmp_path / "starts").unlink()
    status, messages = run(tmp_path, "killed", "killed", "killed", "finished")
    assert status == 1
    reason = "given up after 3 failures without progress: start 3 ended with status 137"
    assert messages[-1] == reason
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "failed",
        "step": 9,
        "reason": reason,
    }


def test_a_reason_with_a_name_that_is_no_text_is_told(tmp_path):
    status, messages = run(tmp_path, "no text", "finished")
    assert status == 0
    assert messages[1].startswith("start 1 ended with status 3 (caf\\udce9: no class)")


def test_progress_begins_the_count_anew(tmp_path):
    what = ["fails", "fails", "progress", "fails", "progress", "fails", "finished"]
    status, messages = run(tmp_path, *what)
    assert status == 0
    counts = [line.partition("; failure ")[2][:1] for line in messages if "; failure " in line]
    assert counts == ["1", "2", "1", "2", "1", "2"]


def test_a_mistake_is_not_made_again(tmp_path):
    status, messages = run(tmp_path, "fails", "mistaken", "finished")
    assert status == 2
    line = "start 2 ended with status 2: a mistake, which another start would meet again"
    assert messages[-1] == line
    assert (tmp_path / "starts").read_text() == "xx"
    content = json.loads((tmp_path / "status.json").read_text())
    assert content == {"state": "failed", "step": 3, "reason": line}


def test_a_finished_run_stays_finished_after_a_mistake(tmp_path):
    run(tmp_path, "finished")
    before = (tmp_path / "status.json").read_text()
    (tmp_path / "starts").unlink()
    status, _ = run(tmp_path, "mistaken")
    assert status == 2
    assert (tmp_path / "status.json").read_text() == before


def test_what_was_no_mistake_when_the_run_made_progress_is_tried_again(tmp_path):
    status, messages = run(tmp_path, "progress", "mistaken and away", "finished")
    assert status == 0
    assert messages[3].startswith("start 2 ended with status 2; failure 2 without progress; ")


def test_a_preempted_run_is_not_started_again(tmp_path):
    status, messages = run(tmp_path, "fails", "preempted", "finished")
    assert status == 75
    assert messages[-1] == "preempted: asked"


def test_after_a_launcher_was_killed_or_crashed_the_run_goes_on_although_it_was_saved(tmp_path):
    status, messages = run(tmp_path, "saved and killed", "saved and crashed", "finished")
    assert status == 0
    assert messages[-1] == "finished"


def test_another_run_in_the_folder_is_not_disturbed(tmp_path):
    holder = lock_holder.of_this_process()
    (tmp_path / lock_holder.FILE_NAME).write_text(lock_holder.as_text(holder, beats=1))
    hasty = HASTY.format(0.5)
    done = subprocess.run(
        command(tmp_path, "finished", program=["-c", hasty]),
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT}/scripts"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"supervise.py: process {os.getpid()} on " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [lock_holder.FILE_NAME]


def test_nothing_of_a_failed_start_is_left_when_the_next_begins(tmp_path):
    hasty = HASTY.format(1)
    status, messages = run(tmp_path, "orphan", "finished", program=["-c", hasty])
    assert status == 0
    assert any(line.startswith("killed what the launcher left behind: ") for line in messages)


def test_signals_go_to_the_command_and_end_it_for_good(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "wait", "finished"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    assert "stopped by SIGTERM" in (tmp_path / "supervise.log").read_text()


def test_the_command_ends_when_its_supervisor_is_killed(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "wait"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "waiting\n"
        process.kill()
        assert process.stdout.read() == ""  # Until the command has closed its end.


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "trainer", "--logdir=my runs/a"],
        ["python", "-m", "trainer", "-logdir", "my runs/a", "--seed=1"],
        ["python", "-m", "trainer", "--flagfile=FILE"],
        ["python", "-m", "trainer", "--flagfile=~/flags"],
        ["python", "-m", "trainer", "--flagfile=FILE", "--logdir=my runs/a"],
        ["python", "-m", "trainer", "--logdir=runs/b", "--flagfile", "FILE"],
    ],
)
def test_the_logdir_is_found(tmp_path, monkeypatch, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flags").write_text(
        f"--seed=1\n--flagfile={tmp_path}/flags\n"  # It names itself.
        "--flagfile=~/flags\n--logdir=runs/b\n  --logdir=my runs/a\n# --logdir=c"
    )
    words = [word.replace("FILE", str(tmp_path / "flags")) for word in words]
    assert supervise.find_logdir(words) == "my runs/a"


def test_a_question_for_versions_or_help_is_no_mistake_in_the_flags():
    for flag in ("--version", "--help"):
        supervise.check_flags(["python", "-m", "trainer", "--logdir=x", flag])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["true"], "the command must have --logdir"),
        (["python", "-m", "trainer", "--logdir=DIR", "--bach_size=3"], "Unknown command line flag"),
        (["./README.md", "--logdir=DIR"], "Permission denied: './README.md'"),
        (["nosuch", "--logdir=DIR"], "No such file or directory: 'nosuch'"),
        (["true", "--logdir=README.md"], "Not a directory: 'README.md/"),
    ],
)
def test_what_no_restart_mends_is_told_at_once(tmp_path, words, line):
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    done = subprocess.run(
        [sys.executable, "scripts/supervise.py", "--", *words],
        cwd=ROOT,
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("supervise.py: ")
    assert line in last
    assert "Traceback" not in done.stderr
    assert "; failure" not in done.stderr
