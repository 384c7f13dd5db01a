"""scripts/launch: what the files refuse and start, with stand-ins for launchers and with real ones.

The real ones are Debian's (slurmctld, slurmd, slurm-client, munge; openmpi-bin).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import slurm
from processes import ROOT, environment, run

from trainer.safety import status

LAUNCH = ROOT / "scripts" / "launch"
SHELL_SCRIPTS = sorted((*ROOT.glob("scripts/**/*.sh"), *ROOT.glob(".ci/*")))
# Each writes down how it was called; what it then says and how it ends, a test may say.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
"""


@pytest.fixture
def stand_ins(tmp_path):
    """Runs a launch file where all that it calls, but this program's own, are stand-ins."""
    folder = tmp_path / "bin"
    calls = tmp_path / "calls"
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    horovodrun = python.parent / "horovodrun"
    folder.mkdir()
    ends = {
        "mpirun": "[ $# -gt 1 ] || echo 'mpirun (Open MPI) 4.1.4'",
        # TensorFlow's own is loaded before, and ldd does not find it.
        "ldd": "echo 'libmpi.so.40 => /lib/libmpi.so.40\nlibtensorflow.so => not found'",
        "ssh": "",
        "getent": "",
        "horovodrun": "",
        "squeue": "echo ${STATE-RUNNING}",
        "scontrol": "",
        "sleep": "",
        "srun": 'case $1 in --mpi=list) echo pmix_v4 ;; --mpi=*) eval "${AS_WORKERS-}" ;; esac',
    }

    def run_file(name, *arguments, said=None, **extra):
        for each, end in {**ends, **(said or {})}.items():
            place = horovodrun if each == "horovodrun" else folder / each
            place.write_text(f"{STAND_IN}{end}\n")
            place.chmod(0o755)
        calls.write_text("")
        env = environment(CALLS=str(calls), SLIM_HOROVOD_VENV=str(tmp_path / "venv"))
        env |= {"SLIM_HOROVOD_PASS": "CALLS STATE AS_WORKERS", "SLURM_SUBMIT_DIR": str(ROOT)}
        env |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
        env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
        done = run([LAUNCH / name, *arguments], env={**env, **extra}, cwd=tmp_path)
        return done, calls.read_text().splitlines()

    return run_file


# A launch file, its arguments, what a stand-in says instead, and a part of the line that comes.
MISTAKES = {
    "mpirun: no --": ("mpirun.sh", ["-np", "2"], {}, "must come after --"),
    "mpirun: of MPICH": ("mpirun.sh", ["--"], {"mpirun": "echo HYDRA"}, "must be Open MPI's"),
    "mpirun: no MPI": ("mpirun.sh", ["--"], {"ldd": "echo libc.so.6"}, "built without MPI"),
    "mpirun: MPI is gone": (
        "mpirun.sh",
        ["--"],
        {"ldd": "echo 'libmpi.so.40 => not found'"},
        "are not found",
    ),
    "ssh: no --": ("ssh.sh", ["-H", "a:1"], {}, "must come after --"),
    "ssh: no hosts": ("ssh.sh", ["-np", "2", "--"], {}, "-H must be hosts"),
    "ssh: no numbers": ("ssh.sh", ["-H", "a,b", "--"], {}, "got 'a,b'"),
    "ssh: no name": ("ssh.sh", ["-H", "a:1", "--"], {"getent": "exit 2"}, "a: has no address"),
    "ssh: a password": (
        "ssh.sh",
        ["-H", "a:1,b:1", "--"],
        {"ssh": "case $* in *' b '*) echo Permission denied; exit 255 ;; esac"},
        "b: Permission denied (this must work: ssh b true)",
    ),
    "ssh: a relative folder": ("ssh.sh", ["-H", "a:1", "--", "--logdir=x"], {}, "absolute path"),
    "slurm: no logdir": ("slurm.sh", [], {}, "--logdir must be given"),
    "slurm: no MPI": ("slurm.sh", ["--logdir=x"], {"ldd": "echo libc.so.6"}, "built without MPI"),
    "slurm: no PMIx": ("slurm.sh", ["--logdir=x"], {"srun": "echo none"}, "no PMIx"),
    "slurm: no environment": (
        "slurm.sh",
        ["--logdir=x"],
        {"srun": "case $1 in --mpi=list) echo pmix ;; *) exit 1 ;; esac"},
        "is not there on every host",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(stand_ins, mistake):
    name, arguments, said, expected = MISTAKES[mistake]
    done, calls = stand_ins(name, *arguments, said=said)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert not any("trainer" in call for call in calls)


def test_outside_of_slurm_its_file_says_how_it_is_started(stand_ins):
    done, _ = stand_ins("slurm.sh", "--logdir=x", SLURM_JOB_ID="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "must be started by sbatch" in done.stderr


def test_mpirun_gets_its_options_and_the_trainer_its_flags(stand_ins):
    done, calls = stand_ins(
        "mpirun.sh", "-np", "2", "-H", "a:1,b:1", "--", "--steps=3", SLIM_HOROVOD_INTERFACE="eth7"
    )
    assert (done.returncode, done.stderr) == (0, "")
    command = calls[-1]
    assert command.endswith(" -np 2 -H a:1,b:1 python -m trainer --steps=3")
    assert " --mca oob_tcp_if_include eth7 " in command


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP"])
def test_what_asks_mpirun_to_end_asks_its_workers_to_save(stand_ins, number):
    # As a terminal does it: to the group of its foreground, which mpirun is not in.
    group = "$(ps -o pgid= $PPID | tr -d ' ')"
    own = f"[ {group} != $(ps -o pgid= $$ | tr -d ' ') ]"
    workers = f"{own} || exit 1; trap 'exit 75' USR1; trap 'exit 2' {number}; "
    workers += f"kill -{number} $PPID; while :; do sleep 0.05; done"
    ends = {"mpirun": f"[ $# -gt 1 ] || {{ echo Open MPI; exit; }}; {workers}"}
    done, _ = stand_ins("mpirun.sh", "--", "--steps=3", said=ends)
    assert (done.returncode, done.stderr) == (75, "")


def test_horovodrun_gets_its_options_and_hosts_are_asked_first(stand_ins):
    by_ssh = ("-i", "key", "--ssh-port=99")
    done, calls = stand_ins("ssh.sh", "-np", "2", "-H", "a:1,b:1", *by_ssh, "--", "--steps=3")
    assert (done.returncode, done.stderr) == (0, "")
    command = "horovodrun -np 2 -H a:1,b:1 -i key --ssh-port=99 python -m trainer --steps=3"
    assert calls[-1] == command
    asked = [call for call in calls if call.startswith("ssh ")]
    assert [re.search(" (.) test -x", call)[1] for call in asked] == ["a", "b"]
    assert all(call.startswith("ssh -i key -p 99 -o BatchMode=yes ") for call in asked)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("state", "status", "is_requeued"),
    [
        ("RUNNING", 75, True),
        ("COMPLETING", 75, False),
        ("RUNNING", 2, False),
    ],
)
def test_a_job_that_has_saved_goes_back_into_the_queue(
    stand_ins, tmp_path, state, status, is_requeued
):
    """Also that supervise.py stands between: its log is there."""
    told = {75: "preempted", 2: "failed", 0: "finished"}[status]
    content = f'{{"state": "{told}", "step": 3, "reason": "as said"}}'
    workers = (
        f"mkdir -p {tmp_path}/run; echo '{content}' > {tmp_path}/run/status.json; exit {status}"
    )
    flags = [f"--logdir={tmp_path}/run", "--steps=9"]
    done, calls = stand_ins("slurm.sh", *flags, STATE=state, AS_WORKERS=workers)
    assert done.returncode == status, done.stderr
    started = next(call for call in calls if "trainer" in call)
    assert "srun --mpi=pmix " in started
    assert " --cpus-per-task=3 " in started
    assert started.endswith(f" -m trainer {' '.join(flags)}")
    assert ("scontrol requeue 7" in calls) == is_requeued
    assert told in (tmp_path / "run" / "supervise.log").read_text().replace("a mistake", "failed")


def test_shell_scripts_are_without_faults():
    assert len(SHELL_SCRIPTS) >= 7
    done = run(["shellcheck", *SHELL_SCRIPTS])
    assert (done.returncode, done.stdout) == (0, "")


# Stands for the Python of an environment: a worker tells its status as the trainer does, and saves
# when it is asked to; all else is Python's own.
WORKER = """#!/bin/bash
if [[ $1 != -m ]]; then exec {python} "$@"; fi
put() {{
  [[ ${{SLURM_PROCID:-${{OMPI_COMM_WORLD_RANK}}}} != 0 ]] ||
    echo '{{"state": "'$1'", "step": 3, "reason": null}}' > {logdir}/status.json
}}
save() {{
  echo "asked by $1"
  sleep 2
  put preempted
  exit 75
}}
trap 'save USR1' USR1
trap 'save TERM' TERM
put running
echo "a worker runs"
for _ in $(seq 600); do sleep 0.2; done
exit 1
"""


@pytest.fixture
def logdir_of_workers(tmp_path, monkeypatch):
    """A folder in which stand-ins of workers tell their status, where launchers are real."""
    logdir, folder = tmp_path / "run", tmp_path / "venv" / "bin"
    logdir.mkdir()
    folder.mkdir(parents=True)
    files = {"python": WORKER.format(python=sys.executable, logdir=logdir)}
    files["ldd"] = "#!/bin/sh\necho libmpi.so.40 '=>' /lib/libmpi.so.40\n"
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SLIM_HOROVOD_VENV", str(tmp_path / "venv"))
    return logdir


def wait_until(condition, what, timeout_sec=60):
    end_sec = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < end_sec, what()
        time.sleep(0.2)


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun")
def test_workers_of_a_real_mpirun_save_when_it_is_asked_to_end(logdir_of_workers):
    command = [LAUNCH / "mpirun.sh", "-np", "2", "--oversubscribe", "--", "--steps=9"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    with process:
        said = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        told = process.stdout.read()
    assert said == ["a worker runs\n"] * 2
    assert process.returncode == 75, told
    assert told.count("asked by USR1\n") == 2
    assert status.read(logdir_of_workers).state == "preempted"


@pytest.mark.processes
@pytest.mark.skipif(slurm.missing() != "", reason=f"no Slurm: {slurm.missing()}")
def test_a_job_of_a_real_slurm_goes_on_after_a_preemption_and_ends_by_scancel(
    logdir_of_workers, tmp_path
):
    output = tmp_path / "output"
    output.touch()
    options = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0"]
    sbatch = ["sbatch", "--parsable", "--export=ALL"]
    with slurm.running(tmp_path) as cluster:
        script = [f"--output={output}", LAUNCH / "slurm.sh", f"--logdir={logdir_of_workers}"]
        job = cluster.call(*sbatch, *options, *script, cwd=ROOT)
        wait_until(lambda: output.read_text().count("a worker runs") == 2, output.read_text)
        urgent = ["--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        cluster.call(*sbatch, *urgent)
        wait_until(lambda: output.read_text().count("a worker runs") == 4, output.read_text)
        assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 1)
        cluster.call("scancel", job)
        cluster.wait_for(job, "CANCELLED")
        wait_until(lambda: output.read_text().count("asked by TERM") == 4, output.read_text)
    assert output.read_text().count("the job goes back into the queue") == 1
