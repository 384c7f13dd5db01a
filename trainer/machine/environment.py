"""Describes what a figure was measured with: versions, device, cores, date."""

import dataclasses
import datetime
import platform
import re
from pathlib import Path

import tensorflow as tf

from trainer.cpu_kernels import library
from trainer.machine import cores
from trainer.process import host_cores, installed


@dataclasses.dataclass(frozen=True)
class Environment:
    """The environment of a run.

    Attributes:
      date: date of the report, ISO 8601, UTC.
      versions: versions of Python and of the `installed.PACKAGES` that are installed.
      device: name of the accelerator, or of the CPU where there is none.
      cpu: name of the CPU.
      cores: number of cores that this process may use.
      threads: number of threads of this worker's session.
      compiled_operations: whether operations of `cpu_kernels` replace some of TensorFlow's.
      host: name of the host.
    """

    date: str
    versions: dict[str, str]
    device: str
    cpu: str
    cores: int
    threads: int
    compiled_operations: bool
    host: str


def cpu_name() -> str:
    """Returns the CPU's name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def describe(local_rank: int = 0, local_size: int = 1) -> Environment:
    """Returns the environment of this worker, `local_rank` of `local_size` on its host."""
    cpu = cpu_name()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[local_rank % len(gpus)])
        device = details.get("device_name", "GPU")
    else:
        device = cpu
    return Environment(
        date=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        versions=installed.versions(),
        device=device,
        cpu=cpu,
        cores=host_cores.available_cores(),
        threads=cores.worker_cores(local_size),
        compiled_operations=library.find() is not None,
        host=platform.node(),
    )
