"""Two workers under horovodrun, to which things happen: real signals, real files, real hangs."""

import json
import os
import resource
import signal
import sys
import time

import numpy as np
import pytest
import soak
import tensorflow as tf
from faulty_runs import (
    FAULTY,
    FLAGS,
    HOROVODRUN,
    MODULE,
    finish,
    is_gone,
    read_status,
    started,
)
from processes import ROOT, trainers

from trainer import exit_status
from trainer.checkpoints import layout, search
from trainer.process import files

pytestmark = [pytest.mark.processes, pytest.mark.slow]

STEPS = 80
SUPERVISE = [sys.executable, "scripts/supervise.py", "--first_pause_sec=0.2", "--"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    logdir = folder / "log"
    flags = [*FLAGS, f"--steps={STEPS}", f"--logdir={logdir}"]
    status, output = finish([*HOROVODRUN, *MODULE, *flags])
    assert status == 0, output
    return logdir


def assert_same_end(logdir, straight):
    """The same weights, each step once, nothing left behind."""
    assert read_status(logdir) == {"state": "finished", "step": STEPS, "reason": None}
    assert soak.find_faults(straight, logdir) == []


def test_sigterm_to_horovodrun_is_a_preemption_and_the_same_command_goes_on(tmp_path, straight):
    logdir = tmp_path / "log"
    flags = [*FLAGS, f"--steps={STEPS}", f"--logdir={logdir}", "--checkpoint_every=0"]
    with started(["horovodrun", "-np", "2", *MODULE, *flags]) as run:
        run.wait_for("step 20/")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 75
        output = run.output()
    assert "asked to stop by SIGTERM" in output
    status = read_status(logdir)
    assert status["state"] == "preempted", output
    assert 20 <= status["step"] < STEPS
    assert search.find_newest(str(logdir)).step == status["step"]

    code, output = finish([*HOROVODRUN, *MODULE, *flags])
    assert code == 0, output
    assert f"goes on after step {status['step']}" in output
    assert "exit with status code" not in output  # 0, on all ranks.
    assert_same_end(logdir, straight)


def test_kills_under_supervision_change_nothing(tmp_path, straight):
    plan = tmp_path / "plan.json"
    queue = [
        {"phase": "mid-step", "rank": 0, "action": "KILL"},
        {"phase": "last step", "rank": 1, "action": "KILL"},
    ]
    plan.write_text(json.dumps({"queue": queue, "fired": 0}))
    logdir = tmp_path / "log"
    flags = [*FLAGS, f"--steps={STEPS}", f"--logdir={logdir}"]
    code, output = finish(
        [*SUPERVISE, *HOROVODRUN, *FAULTY, *flags],
        FAULT_PLAN=str(plan),
        LAST_STEP=str(STEPS),
        SLIM_HOROVOD_PASS="FAULT_PLAN LAST_STEP",
    )
    assert code == 0, output
    assert json.loads(plan.read_text())["queue"] == []
    assert_same_end(logdir, straight)
    messages = (logdir / "supervise.log").read_text()
    assert messages.count(" start ") - messages.count(" ended with ") == 3
    assert messages.rstrip().endswith("finished")


def test_sigkill_of_the_launcher_ends_all_workers(tmp_path):
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=100000", f"--logdir={logdir}", "--checkpoint_every=0"]
    flags += ["--checkpoint_every_minutes=0.005"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with started([*HOROVODRUN, *MODULE, *flags], TMPDIR=str(temporary)) as run:
        run.wait_until(lambda: len(layout.steps_in(str(logdir))) >= 2, "two checkpoints")
        workers = run.workers()
        assert sorted(workers) == [0, 1]
        # What a worker that is killed would leave behind.
        assert not list(temporary.rglob("*autograph*"))
        run.process.kill()
        end_sec = time.monotonic() + 15
        while not is_gone(workers.values()):
            assert time.monotonic() < end_sec, run.output()
            time.sleep(0.1)
        run.process.wait()
    # They heard of it in time to save.
    assert read_status(logdir)["state"] == "preempted"


@pytest.mark.parametrize("fault", ["asleep", "stopped"])
def test_a_worker_that_hangs_ends_the_job_within_the_limit(tmp_path, fault):
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=100000", f"--logdir={logdir}", "--watchdog_seconds=10"]
    # A save or an evaluation may take longer than a step: only steps follow.
    flags += ["--checkpoint_every=0", "--eval_every_epochs=0"]
    extra = {"SLEEPING_EXAMPLE": "77"} if fault == "asleep" else {}
    with started([*HOROVODRUN, *MODULE, *flags], **extra) as run:
        if fault == "stopped":
            run.wait_for("step 20/")
            os.kill(run.workers()[1], signal.SIGSTOP)
        assert run.wait() != 0
        output = run.output()
    assert "exit with status code 79" in output
    assert "no progress for 10 s (--watchdog_seconds) in step" in output
    if fault == "asleep":
        assert "in sleep_for_ever" in output
    assert read_status(logdir)["state"] == "failed"
    # Both workers count to 10: where the sleeper is the first, worker 0 tells that it was lost.
    reasons = ["no progress"] + ["another one has"] * (fault == "asleep")
    assert any(reason in read_status(logdir)["reason"] for reason in reasons)


def test_a_worker_that_does_not_answer_ends_the_job_within_gloos_limit(tmp_path):
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=100000", f"--logdir={logdir}"]
    limit = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "20"}
    with started([*HOROVODRUN, *MODULE, *flags], **limit) as run:
        run.wait_for("step 20/")
        os.kill(run.workers()[1], signal.SIGSTOP)
        assert run.wait() != 0
        output = run.output()
    # Of Horovod's own thread, or of the collective that the worker was in.
    assert "Timed out waiting 20000ms" in output
    assert (
        "worker 0 of 2 ends, since another one has (its last lines say why) or does not answer"
        in output
    )
    assert read_status(logdir)["state"] == "failed"


def wrapper(tmp_path, text):
    """A program that runs the trainer, on rank 1 with a difference."""
    path = tmp_path / "wrapper.sh"
    run = f'exec {sys.executable} -m trainer "$@"'
    path.write_text(f'if [ "$HOROVOD_RANK" = 1 ]; then {text}; fi\n{run}\n')
    return ["sh", str(path)]


@pytest.mark.parametrize(
    ("difference", "reasons"),
    [
        (
            'export PYTHONPATH=ELSEWHERE:$PYTHONPATH; set -- --momentum=0.5 "$@"',
            ("file of faulty_data is ", "; flag --momentum is 0.5, not 0.9"),
        ),
        ("export FINGERPRINT=other", ("data set's fingerprint is other, not patches",)),
    ],
)
def test_a_worker_that_differs_is_refused_before_the_first_step(tmp_path, difference, reasons):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (ROOT / "tests/programs/faulty_data.py").read_text(encoding="utf-8")
    (elsewhere / "faulty_data.py").write_text(code + "\n# Changed on one host.\n")
    difference = difference.replace("ELSEWHERE", str(elsewhere))
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=10", f"--logdir={logdir}"]
    code, output = finish([*HOROVODRUN, *wrapper(tmp_path, difference), *flags])
    assert code != 0
    assert f"worker 1 of 2 does not run what worker 0 does: {reasons[0]}" in output
    assert all(reason in output for reason in reasons)
    assert layout.steps_in(str(logdir)) == []
    assert "step 1/" not in output


# With two workers of 8 images, example 37 of the first epoch's order is in some step of it.
BAD = "37"


def assert_is_finite(checkpoint):
    reader = tf.train.load_checkpoint(checkpoint)
    for name in reader.get_variable_to_shape_map():
        assert np.all(np.isfinite(reader.get_tensor(name))), name


def test_nan_on_one_rank_rolls_back_once_and_then_stops_and_the_state_before_is_saved(tmp_path):
    """The same batch comes again, since nothing has changed."""
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=12", f"--logdir={logdir}", "--on_nonfinite=rollback"]
    # Of the state that is saved at the end, no checkpoint is due.
    flags += ["--checkpoint_every=3", "--keep_checkpoints=20", "--eval_every_epochs=0"]
    code, output = finish([*HOROVODRUN, *FAULTY, *flags], BAD_EXAMPLES=BAD, HASHES=tmp_path)
    hashes = [(tmp_path / f"variables_{rank}").read_text() for rank in (0, 1)]
    assert hashes[0] == hashes[1]
    assert code != 0
    assert output.count("all go back to the newest checkpoint, this once") == 1
    assert "slim-horovod: step 5: the loss is nan" in output
    assert "step 5: the loss is nan, the gradient's norm nan; the first gradient" in output
    assert "is that of conv1/weights, on worker " in output
    assert "The state after step 4 is saved" in output
    newest = search.find_newest(str(logdir))
    assert newest.step == 4
    assert sorted(layout.steps_in(str(logdir))) == [3, 4]
    assert_is_finite(newest.prefix)
    assert read_status(logdir)["state"] == "failed"


def test_where_there_is_nothing_to_go_back_to_the_state_before_is_saved(tmp_path):
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=12", f"--logdir={logdir}", "--on_nonfinite=rollback"]
    (done,) = trainers([*flags, "--checkpoint_every=0", "--eval_every_epochs=0"], BAD_EXAMPLES=BAD)
    newest = search.find_newest(str(logdir))
    step = newest.step
    assert done.returncode == exit_status.FAILED
    assert f"slim-horovod: step {step + 1}: the loss is nan" in done.stderr
    assert (
        f"checkpoint to go back to, got none. The state after step {step} is saved" in done.stderr
    )
    assert_is_finite(newest.prefix)


def test_nan_stops_the_run_at_once_where_nothing_else_is_said(tmp_path):
    """Workers decide together, as the test before shows."""
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=12", f"--logdir={logdir}", "--checkpoint_every=0"]
    (done,) = trainers([*flags, "--eval_every_epochs=0"], BAD_EXAMPLES=BAD)
    assert done.returncode != 0
    newest = search.find_newest(str(logdir))
    assert f"slim-horovod: step {newest.step + 1}: the loss is nan" in done.stderr
    assert f"The state after step {newest.step} is saved" in done.stderr
    assert "all go back" not in done.stdout + done.stderr
    assert_is_finite(newest.prefix)
    assert read_status(logdir)["state"] == "failed"


def test_nan_is_skipped_and_counted(tmp_path):
    flags = [*FLAGS, "--steps=12", "--on_nonfinite=skip", f"--result_json={tmp_path}/result.json"]
    (done,) = trainers([*flags, f"--logdir={tmp_path}/log"], BAD_EXAMPLES=BAD)
    assert done.returncode == 0, done.stderr
    assert search.find_newest(f"{tmp_path}/log").step == 12
    said = done.stdout + done.stderr
    assert "left out; 1 up to now" in said
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    assert result["skipped_steps"] == said.count("left out; ") >= 1  # Once in each epoch.
    assert_is_finite(f"{tmp_path}/log/model.ckpt-12")


def test_a_full_disk_during_a_save_costs_that_save_alone(tmp_path):
    """Files may not grow beyond a limit, which is taken away again while the run goes on."""
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=100000", f"--logdir={logdir}", "--eval_every_epochs=0"]
    with started([*MODULE, *flags]) as run:
        run.wait_until(lambda: len(layout.steps_in(str(logdir))) >= 2, "two checkpoints")
        limits = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1000, limits[1]))
        run.wait_for("no checkpoint was saved")
        before = search.find_newest(str(logdir))
        assert before.skipped == ()
        run.wait_for("the logs cannot be written")
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limits)
        run.wait_until(
            lambda: search.find_newest(str(logdir)).step > before.step + 5, "a new checkpoint"
        )
        run.process.send_signal(signal.SIGUSR1)
        assert run.wait() == 75
        assert "Detected at node" not in run.output()  # The reason is one line.
    assert read_status(logdir)["state"] == "preempted"
    assert not list(logdir.glob(f".*{files.SUFFIX}"))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    logdir = tmp_path / "log"
    flags = [*FLAGS, "--steps=100000", f"--logdir={logdir}"]
    with started([*MODULE, *flags]) as run:
        run.wait_until(lambda: layout.steps_in(str(logdir)), "a checkpoint")
        (refused,) = trainers(flags)
        assert refused.returncode == 1
        assert f"process {run.process.pid} on {os.uname().nodename} has" in refused.stderr
        assert read_status(logdir)["state"] == "running"
        run.process.kill()
        run.wait()
    with started([*MODULE, *flags]) as run:
        run.wait_for("goes on after step")
        assert "whose process is gone" in run.output()
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 75
