"""Makes findings of what `probe_libraries` found out about the libraries."""

import os
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.modes.doctor.finding import AFRESH, RENEW, Finding
from trainer.process import settings, texts


def check_devices(found: dict[str, Any]) -> Iterator[Finding]:
    """Yields the processor, the GPUs, and how many of them TensorFlow sees."""
    if "error" in found:
        yield Finding("tensorflow", f"can't be loaded ({texts.first_line(found['error'])})", AFRESH)
        return
    yield Finding("CPU", f"{found['cpu']}, {found['cores']} usable cores")
    yield Finding("threads", _describe_threads(found["cores"]))
    yield from check_settings(Config(), has_gpu=bool(found["gpus"]))
    if not found["gpus"]:
        yield Finding("huge pages", _describe_huge_pages())
    yield _describe_kernels(found["kernels"])
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        gpus = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        gpus = ""
    for number, gpu in enumerate(gpus.splitlines()):
        yield Finding(f"GPU {number}", gpu)
    # Not broken: an environment may be meant to do without the GPUs (setup.sh --cpu).
    hint = "; to use the others: scripts/setup.sh --gpu" * (found["gpus"] < len(gpus.splitlines()))
    yield Finding("GPUs", f"TensorFlow sees {found['gpus']}{hint}")


def _describe_threads(cores: int) -> str:
    """Returns how many threads and operations at a time a worker has on so many cores."""
    return (
        f"{cores} for one worker, its share for each of several (horovodrun's, without GPUs: bound "
        "to cores of their own); without GPUs one operation at a time, two with several workers "
        "with several cores each or on several hosts"
    )


def _describe_huge_pages() -> str:
    """Returns whether the kernel grants the huge pages that GLIBC_TUNABLES asks for."""
    modes = read_text("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", modes)
    state = chosen[1] if chosen else "unknown"
    hint = "" if state in ("always", "madvise") else ": steps take some 8 % longer without"
    return f"{state}{hint}"


def _describe_kernels(found: dict[str, Any]) -> Finding:
    """Returns which kernels compute convolutions and BN; see `probe_libraries`."""
    named = found["library"]
    if found["wrong"]:
        return Finding("kernels", found["wrong"], "correct or unset it")
    if found["missing"]:
        remedy = (
            f"name a library that was built for this TensorFlow, not {named}" if named else RENEW
        )
        text = f"TensorFlow's own: {found['missing']}"
        return Finding("kernels", text, remedy if found["broken"] else None)
    text = f"{named}, as given" if named else "compiled for this CPU's AVX-512"
    if found["convolutions"]:
        text += f"; convolutions of bfloat16 are TensorFlow's: {found['convolutions']}"
    return Finding("kernels", text)


def check_settings(config: Config, *, has_gpu: bool) -> Iterator[Finding]:
    """Yields the environment variables that the trainer sets, or finds set by the user.

    Args:
      config: configuration of a run.
      has_gpu: whether its steps run on a GPU.
    """
    situation = settings.Situation(config, has_gpu, dict(os.environ))
    for moment in settings.Moment:
        for setting, value, is_given in settings.find_values(moment, situation):
            whose = "as given" if is_given else f"set before {moment.value}"
            yield Finding("setting", f"{setting.name}={value} ({whose})")


def check_slim(found: dict[str, Any]) -> Iterator[Finding]:
    """Yields whether tf-slim builds batch normalization on this TensorFlow."""
    if "error" in found:
        yield Finding("slim", f"tf-slim does not work ({texts.first_line(found['error'])})", AFRESH)
    elif found["updates"] != 2:
        yield Finding("slim", f"batch_norm has {found['updates']} update ops, not 2", AFRESH)
    else:
        yield Finding("slim", "batch_norm is built, with its 2 update ops")


def check_horovod(found: dict[str, Any]) -> Iterator[Finding]:
    """Yields whether Horovod's library loads, and what it was built with."""
    if "error" in found:
        about = read_text(
            str(metadata.distribution("horovod").locate_file("horovod/metadata.json"))
        )
        built_for = re.search(r'"tensorflow": "([^"]+)"', about)
        here = metadata.version("tensorflow")
        if built_for is not None and built_for[1] != here:
            reason = f"was built for TensorFlow {built_for[1]}, but here is {here}"
            yield Finding("horovod", reason, RENEW)
        else:
            yield Finding(
                "horovod", f"can't be loaded ({texts.first_line(found['error'])})", AFRESH
            )
    elif not found["Gloo"]:
        yield Finding("horovod", "was built without Gloo", AFRESH)
    else:
        parts = ", ".join(name for name, built in found.items() if built)
        yield Finding("horovod", f"built with {parts}")


def read_text(path: str) -> str:
    """Returns the text of a small file; empty where it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
