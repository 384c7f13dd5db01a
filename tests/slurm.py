"""A Slurm of this host alone, from Debian's packages, in a folder; for test_launch.py.

Its daemons run as root, on ports that are free, with a key of their own.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue")
# Two partitions of the same node: what comes into the urgent one preempts what runs in the other,
# which then has a while to save. A job that goes back into the queue is begun again 5 s later.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=300 OverTimeLimit=0
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""


def missing():
    """Returns what stands in the way of a Slurm here; empty: nothing."""
    if os.getuid() != 0:
        return "Slurm's daemons are started by root"
    names = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    return f"there is no {names[0]}" if names else ""


def _path():
    return f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/usr/bin"


def _free_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _wait_until(condition, what, timeout_sec=60):
    end_sec = time.monotonic() + timeout_sec
    while not condition():
        if time.monotonic() > end_sec:
            raise TimeoutError(what)
        time.sleep(0.2)


class Slurm:
    """A Slurm that runs.

    Attributes:
      environ: environment of those who use it.
    """

    def __init__(self, environ):
        self.environ = environ

    def call(self, *command, cwd=None):
        """Runs one of Slurm's commands; returns what it printed."""
        return subprocess.run(
            command,
            env=self.environ,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    def state(self, job):
        """A job's state, such as PENDING or COMPLETED."""
        told = self.call("scontrol", "--oneliner", "show", "job", job)
        return told.partition("JobState=")[2].split()[0]

    def restarts(self, job):
        """Returns how often a job was begun again."""
        told = self.call("scontrol", "--oneliner", "show", "job", job)
        return int(told.partition("Restarts=")[2].split()[0])

    def wait_for(self, job, state, timeout_sec=60):
        """Waits until a job is in a state."""
        _wait_until(lambda: self.state(job) == state, f"{state}, {job}", timeout_sec)


@contextlib.contextmanager
def running(folder):
    """Starts a Slurm in a folder; ends it, with all that it has started."""
    folder = Path(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munged wants a folder that others can look into.
    key = folder / "munge.key"
    key.write_bytes(os.urandom(256))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder,
            host=host,
            cores=os.cpu_count(),
            controller_port=_free_port(),
            node_port=_free_port(),
        )
    )
    # Without systemd, in containers for instance.
    (folder / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
    environ = {**os.environ, "PATH": _path(), "SLURM_CONF": str(configuration)}
    places = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    places |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    options = [f"--{name}={place}" for name, place in places.items()]
    commands = [
        ["munged", "--foreground", "--force", *options],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration)],
    ]
    with contextlib.ExitStack() as stack:
        for command in commands:
            process = subprocess.Popen(
                command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if command[0] == "munged":
                _wait_until((folder / "munge.socket").exists, "munged")
        slurm = Slurm(environ)

        def is_idle():
            done = subprocess.run(
                ["sinfo", "--noheader", "--format=%T"],
                env=environ,
                capture_output=True,
                check=False,
            )
            return b"idle" in done.stdout

        _wait_until(is_idle, f"no idle node; see {folder}/slurmctld.log")
        yield slurm
        with contextlib.suppress(subprocess.SubprocessError):
            slurm.call("scancel", "--user=root")
            _wait_until(lambda: not slurm.call("squeue", "--noheader"), "the end of all jobs")
