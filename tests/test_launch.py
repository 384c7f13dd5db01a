"""scripts/launch: what the files refuse and start, with stand-ins for launchers and with real ones.

The real ones are Debian's (slurmctld, slurmd, slurm-client, munge; openmpi-bin). The schema of
MPIJob is told here in a few lines; the manifest was checked against the operator's own, too.
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
import yaml
from processes import ROOT, environment, run

from flags import command_line
from trainer.safety import status

LAUNCH = ROOT / "scripts" / "launch"
KUBERNETES = LAUNCH / "kubernetes"
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
        "ldd": "echo libmpi.so.40 '=>' /lib/libmpi.so.40",
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
    workers = f"trap 'exit 75' USR1; kill -{number} $PPID; while :; do :; done"
    ends = {"mpirun": f"[ $# -gt 1 ] || {{ echo Open MPI; exit; }}; {workers}"}
    done, _ = stand_ins("mpirun.sh", "--", "--steps=3", said=ends)
    assert (done.returncode, done.stderr) == (75, "")


def test_horovodrun_gets_its_options_and_hosts_are_asked_first(stand_ins):
    done, calls = stand_ins("ssh.sh", "-np", "2", "-H", "a:1,b:1", "-p", "99", "--", "--steps=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert calls[-1] == "horovodrun -np 2 -H a:1,b:1 -p 99 python -m trainer --steps=3"
    asked = [call for call in calls if call.startswith("ssh ")]
    assert [re.search(" (.) test -x", call)[1] for call in asked] == ["a", "b"]
    assert all(call.startswith("ssh -p 99 -o BatchMode=yes ") for call in asked)


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


# Fields of MPIJob v2beta1 and of pods that the manifest may have, with the types of their values:
# those of the operator's CustomResourceDefinition, as far as they are of use here. A field that is
# not in it is dropped without a word by the server.
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "resources": {"limits": {"cpu": str, "memory": str, "nvidia.com/gpu": str}},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
REPLICAS = {
    "replicas": int,
    "restartPolicy": {"Never", "OnFailure"},  # The operator refuses others.
    "template": {
        "spec": {
            "terminationGracePeriodSeconds": int,
            "containers": [CONTAINER],
            "volumes": [VOLUME],
        }
    },
}
MPI_JOB = {
    "apiVersion": {"kubeflow.org/v2beta1"},
    "kind": {"MPIJob"},
    "metadata": {"name": str},
    "spec": {
        "slotsPerWorker": int,
        "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
        "runPolicy": {"cleanPodPolicy": {"None", "Running", "All"}, "backoffLimit": int},
        "mpiReplicaSpecs": {"Launcher": REPLICAS, "Worker": REPLICAS},
    },
}


def faults_of(value, schema, place=""):
    """One line for each value that is not as a schema says."""
    if isinstance(schema, dict) and isinstance(value, dict):
        for name, part in value.items():
            if name in schema:
                yield from faults_of(part, schema[name], f"{place}/{name}")
            else:
                yield f"{place}/{name}: there is no such field"
    elif isinstance(schema, list) and isinstance(value, list):
        for part in value:
            yield from faults_of(part, schema[0], place)
    elif isinstance(schema, set):
        if value not in schema:
            yield f"{place}: {value!r}"
    elif not isinstance(schema, type) or not isinstance(value, schema):
        yield f"{place}: {value!r}"


def test_a_fault_of_a_manifest_is_found():
    wrong = {"spec": {"slotPerWorker": 8, "mpiReplicaSpecs": {"Worker": {"replicas": "2"}}}}
    assert list(faults_of(wrong, MPI_JOB)) == [
        "/spec/slotPerWorker: there is no such field",
        "/spec/mpiReplicaSpecs/Worker/replicas: '2'",
    ]


def test_the_manifest_starts_the_trainer_on_all_slots():
    job = yaml.safe_load((KUBERNETES / "mpijob.yaml").read_text())
    assert list(faults_of(job, MPI_JOB)) == []
    launcher, worker = (job["spec"]["mpiReplicaSpecs"][name] for name in ("Launcher", "Worker"))
    assert launcher["replicas"] == 1  # The operator refuses others.
    (start,), (work,) = (each["template"]["spec"]["containers"] for each in (launcher, worker))
    assert start["image"] == work["image"]
    assert os.access(ROOT / start["command"][0], os.X_OK)
    options, flags = start["args"][: start["args"].index("--")], start["args"][3:]
    slots = job["spec"]["slotsPerWorker"]
    assert options == ["-np", str(slots * worker["replicas"])]
    assert work["resources"]["limits"]["nvidia.com/gpu"] == str(slots)
    config = command_line.parse(["trainer", *flags])
    mounts = {each["mountPath"]: each["name"] for each in work["volumeMounts"]}
    assert {config.data.data_dir, os.path.dirname(config.run.logdir), "/dev/shm"} == set(mounts)
    assert set(mounts.values()) == {each["name"] for each in worker["template"]["spec"]["volumes"]}


def test_the_image_is_made_by_setup_and_nothing_else():
    text = (KUBERNETES / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line for line in text.splitlines() if line.startswith("RUN ")]
    assert len(steps) == 2
    assert steps[1] == "RUN scripts/setup.sh $SETUP && rm -rf ~/.cache"
    assert "ARG SETUP=--gpu" in text
    assert "pip" not in text


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
