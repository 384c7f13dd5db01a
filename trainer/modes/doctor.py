"""What is installed, what was it built with, does it work? `--mode=doctor`, and setup.sh's proof.

Everything that a broken installation can bring down runs in processes of its own: a crash while a
library is loaded is then a finding. The all-reduce goes through `horovodrun` itself. Starting the
workers directly would be a second faster, and leave out launcher and rendezvous, where much of what
goes wrong on a new machine goes wrong.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config import Config
from trainer.process import settings

_SHOWN = (
    "slim-horovod", "tensorflow", "tf-slim", "horovod", "tensorboard", "numpy", "protobuf",
    "absl-py",
)  # fmt: skip
_TIMEOUT_SEC = 180.0
_RENEW = "run scripts/setup.sh"
# To be removed is only what setup.sh made, and marked as such.
_OURS = Path(sys.prefix, ".slim-horovod").exists()
_AFRESH = f"remove {sys.prefix} and run scripts/setup.sh" if _OURS else f"{_RENEW}, use its .venv"

# A line of JSON for each part: what it says, or why it fails.
_PROBE = """
import json

def tensorflow():
    import tensorflow as tf
    from trainer.machine import cores
    from trainer.cpu_kernels import library
    gpus = len(tf.config.list_physical_devices("GPU"))
    reason = library.reason_for_none()
    kernels = {"missing": reason, "broken": reason.startswith(library.NOT_LOADED)}
    return {"cores": cores.available_cores(), "gpus": gpus, "kernels": kernels}

def slim():
    import tensorflow as tf
    from models.slim_compat import slim
    with tf.Graph().as_default():
        images = tf.compat.v1.placeholder(tf.float32, [2, 8, 8, 3])
        slim.batch_norm(images, is_training=True, updates_collections=("updates",))
        return {"updates": len(tf.compat.v1.get_collection("updates"))}

def horovod():
    import horovod.tensorflow as hvd
    return {"Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built(), "NCCL": bool(hvd.nccl_built())}

for part in (tensorflow, slim, horovod):
    try:
        found = part()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"part": part.__name__, "found": found}), flush=True)
"""

# Averages the ranks, on GPUs where each worker has one, and writes the mean to the folder in argv.
_WORKER = """
import json, pathlib, sys
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
gpus = tf.config.list_physical_devices("GPU")
mine = gpus[hvd.local_rank():][:1] if len(gpus) >= hvd.local_size() else []
tf.config.set_visible_devices(mine, "GPU")
with tf.device("/gpu:0" if mine else "/cpu:0"):
    mean = hvd.allreduce(tf.constant([float(hvd.rank())]), op=hvd.Average, name="doctor")
found = {"mean": float(mean[0]), "size": hvd.size(), "on": "GPUs" if mine else "CPU"}
pathlib.Path(sys.argv[1], f"{hvd.rank()}.json").write_text(json.dumps(found))
"""


class Finding(NamedTuple):
    """One line of the report. With a remedy, it is about something broken."""

    title: str
    text: str
    remedy: str | None = None


def run(config: Config | None = None) -> int:
    """Prints the report; returns the exit status: 1 where something is broken."""
    del config  # The flags of other modes do not matter here.
    broken = False
    for finding in examine():
        if finding.remedy is None:
            print(f"{finding.title:<13} {finding.text}", flush=True)
        else:
            broken = True
            print(
                f"{finding.title:<13} BROKEN: {finding.text}: {finding.remedy}",
                flush=True,
            )
    return int(broken)


def examine() -> Iterator[Finding]:
    """Every finding, the next as soon as it is known."""
    yield Finding("python", f"{sys.version.split()[0]} ({sys.executable})")
    installed = list(check_packages())
    yield from installed
    if any(finding.remedy for finding in installed):
        return  # What follows would only say the same, less clearly.
    probe = run_python(_PROBE)
    lines = [line for line in probe.output.splitlines() if line.startswith('{"part"')]
    found = {answer["part"]: answer["found"] for answer in map(json.loads, lines)}
    for part, check in _CHECKS.items():
        if part not in found:
            yield Finding(part, f"ends the process that loads it ({how_ended(probe)})", _AFRESH)
            return
        yield from check(found[part])
    if "error" not in found["horovod"]:
        yield check_allreduce()


def check_packages() -> Iterator[Finding]:
    """The versions, held against what setup.py allows."""
    versions = {}
    for name in (*_SHOWN, "packaging"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "is not installed for this Python", _RENEW)
            return
    from packaging.requirements import Requirement  # Only now known to be there.

    rules = {
        rule.name: rule.specifier
        for rule in map(Requirement, metadata.requires("slim-horovod") or ())
        if rule.marker is None or rule.name == "horovod"
    }
    for name in _SHOWN:
        rule = rules.get(name)
        wrong = rule is not None and versions[name] not in rule
        yield Finding(
            name,
            f"{versions[name]} does not fit {rule}" if wrong else versions[name],
            _RENEW if wrong else None,
        )


def check_devices(found: dict[str, Any]) -> Iterator[Finding]:
    """The processor and the GPUs, and whether TensorFlow sees them."""
    if "error" in found:
        yield Finding("tensorflow", f"can't be loaded ({first_line(found['error'])})", _AFRESH)
        return
    model = re.search(r"^model name\s*:\s*(.+)$", read_text("/proc/cpuinfo"), re.MULTILINE)
    yield Finding("CPU", f"{model[1] if model else 'unknown'}, {found['cores']} usable cores")
    yield Finding("threads", _describe_threads(found["cores"]))
    yield Finding("malloc", _describe_malloc())
    kernels = found["kernels"]
    reason = kernels["missing"]
    text = f"TensorFlow's own: {reason}" if reason else "compiled for this CPU's AVX-512"
    yield Finding("kernels", text, _RENEW if kernels["broken"] else None)
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        gpus = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        gpus = ""
    for number, gpu in enumerate(gpus.splitlines()):
        yield Finding(f"GPU {number}", gpu)
    # Not broken: whoever has GPUs may want an environment without them (setup.sh --cpu).
    hint = "; to use the others: scripts/setup.sh --gpu" * (found["gpus"] < len(gpus.splitlines()))
    yield Finding("GPUs", f"TensorFlow sees {found['gpus']}{hint}")


def _describe_threads(cores: int) -> str:
    """What the trainer sets from what it finds, and what overrides it."""
    cycle = os.environ.get("HOROVOD_CYCLE_TIME", "100 on CPUs, 1 on GPUs")
    return (
        f"{cores} for one worker, its share for each of several (horovodrun's, without GPUs: bound "
        "to cores of their own); without GPUs one operation at a time, two with several workers "
        "with several cores each or on several hosts; "
        f"HOROVOD_CYCLE_TIME: {cycle} ms"
    )


def _describe_malloc() -> str:
    """The settings of the C library's allocator, and whether the kernel grants huge pages."""
    if settings.has_gpu():
        return "as it is: tensors live on the GPU"
    tunables = os.environ.get(settings.VARIABLE, "not set")
    modes = read_text("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", modes)
    state = chosen[1] if chosen else "unknown"
    hint = "" if state in ("always", "madvise") else ": steps take some 9 % longer without"
    return f"{settings.VARIABLE}={tunables}; huge pages: {state}{hint}"


def check_slim(found: dict[str, Any]) -> Iterator[Finding]:
    """Whether tf-slim builds batch normalization on this TensorFlow."""
    if "error" in found:
        yield Finding("slim", f"tf-slim does not work ({first_line(found['error'])})", _AFRESH)
    elif found["updates"] != 2:
        yield Finding("slim", f"batch_norm has {found['updates']} update ops, not 2", _AFRESH)
    else:
        yield Finding("slim", "batch_norm is built, with its 2 update ops")


def check_horovod(found: dict[str, Any]) -> Iterator[Finding]:
    """Whether Horovod's library loads, and what it was built with."""
    if "error" in found:
        about = read_text(
            str(metadata.distribution("horovod").locate_file("horovod/metadata.json"))
        )
        built_for = re.search(r'"tensorflow": "([^"]+)"', about)
        here = metadata.version("tensorflow")
        if built_for is not None and built_for[1] != here:
            reason = f"was built for TensorFlow {built_for[1]}, but here is {here}"
            yield Finding("horovod", reason, _RENEW)
        else:
            yield Finding("horovod", f"can't be loaded ({first_line(found['error'])})", _AFRESH)
    elif not found["Gloo"]:
        yield Finding("horovod", "was built without Gloo", _AFRESH)
    else:
        parts = ", ".join(name for name, built in found.items() if built)
        yield Finding("horovod", f"built with {parts}")


_CHECKS = {"tensorflow": check_devices, "slim": check_slim, "horovod": check_horovod}


def check_allreduce(timeout_sec: float = _TIMEOUT_SEC) -> Finding:
    """Two workers under horovodrun average their ranks."""
    launcher = Path(sys.executable).with_name("horovodrun")
    if not launcher.exists():
        return Finding("all-reduce", f"there is no {launcher}", _AFRESH)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ended = run_python(
            _WORKER,
            folder,
            launcher=(str(launcher), "-np", "2"),
            timeout_sec=timeout_sec,
        )
        answers = Path(folder).iterdir() if ended.status == 0 else ()
        said = [json.loads(answer.read_text()) for answer in answers]
    if len(said) == 2 and all((each["mean"], each["size"]) == (0.5, 2) for each in said):
        seconds = time.monotonic() - start
        return Finding("all-reduce", f"2 workers, on {said[0]['on']}, right, in {seconds:.0f} s")
    reason = f"of 2 workers under horovodrun failed ({how_ended(ended)})"
    return Finding(
        "all-reduce",
        reason,
        "see that this host's name resolves and no firewall stands between",
    )


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    errors: str


def run_python(
    code: str,
    *arguments: str,
    launcher: tuple[str, ...] = (),
    timeout_sec: float = _TIMEOUT_SEC,
) -> Ended:
    """Runs `code` with this Python, in processes that all end within `timeout_sec`."""
    process = subprocess.Popen(
        [*launcher, sys.executable, "-c", code, *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_sec)
    except subprocess.TimeoutExpired:
        _end(process)
        return Ended(1, "", f"no end after {timeout_sec:g} s")
    except KeyboardInterrupt:
        _end(process)
        raise
    return Ended(process.returncode, output, errors)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends horovodrun, which ends its workers when it is told to; else, what there is of it."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
            return


def how_ended(ended: Ended) -> str:
    """The signal that ended a process, or its last line, most likely an error, or its status."""
    if ended.status < 0:
        return signal.Signals(-ended.status).name
    lines = (ended.errors or ended.output).strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {ended.status}"


def first_line(text: str) -> str:
    """The first line of an error's message."""
    return text.strip().splitlines()[0]


def read_text(path: str) -> str:
    """A small file; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(run())
