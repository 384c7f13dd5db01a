"""The table of all environment variables that this program sets for the libraries that it uses.

What the user has set stays. Nothing here imports TensorFlow: most of these variables are read once,
when it or the C library is loaded.
"""

import enum
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import NamedTuple

from trainer.config import Config
from trainer.config.run import LONG_PHASE
from trainer.process import launcher

CPU_CYCLE_MS = 100  # Of Horovod, where there is no GPU.


class Moment(enum.Enum):
    """The moments at which variables are read: each must be set before its moment."""

    PYTHON = "the C library starts"
    TENSORFLOW = "TensorFlow is loaded"
    HOROVOD = "Horovod starts"


class Situation(NamedTuple):
    """The circumstances that a value depends on.

    Attributes:
      config: configuration of this run.
      has_gpu: whether steps run on a GPU.
      environ: environment variables of this process.
    """

    config: Config
    has_gpu: bool
    environ: Mapping[str, str]


class Setting(NamedTuple):
    """A row of the table.

    Attributes:
      name: name of the environment variable.
      moment: moment before which it must be set.
      find_value: function that returns the value for a situation; None: the variable is not set.
      why: reason for the value, with what was measured.
      extends: whether the value replaces the user's, which it then contains.
    """

    name: str
    moment: Moment
    find_value: Callable[[Situation], str | None]
    why: str
    extends: bool = False


def _tunables(situation: Situation) -> str | None:
    return None if situation.has_gpu else "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


def _log_level(situation: Situation) -> str:
    return "2" if situation.has_gpu else "3"


def _xla_flags(situation: Situation) -> str | None:
    if not situation.config.model.xla:
        return None
    return f"{situation.environ.get('TF_XLA_FLAGS', '')} --tf_xla_cpu_global_jit".strip()


def _gpu_threads(situation: Situation) -> str | None:
    return "gpu_private" if situation.has_gpu else None


def _cycle_time(situation: Situation) -> str | None:
    is_tuned = situation.config.communication.autotune  # Horovod leaves alone what is set.
    return None if situation.has_gpu or is_tuned else str(CPU_CYCLE_MS)


def _fusion_threshold(situation: Situation) -> str | None:
    threshold = situation.config.communication.fusion_threshold_mb
    if threshold is not None:
        return str(threshold * 2**20)
    is_fixed = situation.config.run.deterministic and not _sums_by_rank(situation)
    return "0" if is_fixed else None


def _sums_by_rank(situation: Situation) -> bool:
    """Returns whether sums over workers do not depend on what is sent together.

    CPU workers of one host add up in the order of their ranks (scripts/horovod/patches). A ring,
    over hosts or of GPUs, begins each part of a buffer at another worker.
    """
    launched = launcher.find(situation.environ)
    if launched is None or launched.size <= 2:  # Of two numbers, either order has the same sum.
        return True
    return not situation.has_gpu and launcher.local_size(situation.environ) == launched.size


def _autotune(situation: Situation) -> str | None:
    return "1" if situation.config.communication.autotune else None


def _timeline(situation: Situation) -> str | None:
    return None if situation.config.telemetry.profile_steps is None else "DYNAMIC"


def _is_logged_by_nccl(situation: Situation) -> bool:
    config = situation.config
    times_it = config.mode == "benchmark" and "allreduce" in config.benchmark.passes
    return times_it and situation.has_gpu and "NCCL_DEBUG" not in situation.environ


def _nccl_log(situation: Situation) -> str | None:
    if not _is_logged_by_nccl(situation):
        return None
    return os.path.join(tempfile.gettempdir(), f"%p.{secrets.token_hex(4)}{NCCL_LOG_ENDING}")


def _nccl_subsystems(situation: Situation) -> str | None:
    return "INIT,GRAPH" if _is_logged_by_nccl(situation) else None


def _nccl_level(situation: Situation) -> str | None:
    return "INFO" if _is_logged_by_nccl(situation) else None


def _stall_warning(situation: Situation) -> str | None:
    limit_sec = situation.config.run.watchdog_seconds
    return str(max(1, round(limit_sec / 2))) if limit_sec else None


def _stall_shutdown(situation: Situation) -> str | None:
    warning = situation.environ.get(_STALL_CHECK, "0")
    if not warning.isdecimal() or int(warning) == 0:
        return None  # Without a warning there is no shutdown either.
    limit_sec = situation.config.run.watchdog_seconds
    return str(max(int(warning) + 1, round((LONG_PHASE + 1) * limit_sec))) if limit_sec else None


# The file of NCCL's log, whose name ends like this where it is this program's.
NCCL_LOG = "NCCL_DEBUG_FILE"
NCCL_LOG_ENDING = ".slim-horovod-nccl.log"
_STALL_CHECK = "HOROVOD_STALL_CHECK_TIME_SECONDS"

# The settings, in the order in which they are made: _STALL_CHECK comes before its shutdown.
SETTINGS = (
    Setting(
        "GLIBC_TUNABLES",
        Moment.PYTHON,
        _tunables,
        "TensorFlow takes every large tensor from malloc and gives it back at once. With pages of "
        "4 KiB that costs the kernel's time (resnet_v2_50, batch 32, bfloat16, 2 cores: 2.43 s a "
        "step without huge pages, 2.24 s with them). One arena: memory that one thread gives back "
        "serves the others",
    ),
    Setting(
        "TF_CPP_MIN_LOG_LEVEL",
        Moment.TENSORFLOW,
        _log_level,
        "each worker would print TensorFlow's notes before its own first line; without the "
        "driver's device file, that there is no GPU is no error",
    ),
    Setting(
        "TF_GPU_THREAD_MODE",
        Moment.TENSORFLOW,
        _gpu_threads,
        "threads that start kernels are the GPU's own: those of the input would keep them waiting "
        "(as NVIDIA's ConvNets and tf_cnn_benchmarks set it; not measured here)",
    ),
    Setting(
        "TF_XLA_FLAGS",
        Moment.TENSORFLOW,
        _xla_flags,
        "XLA compiles for CPUs only where this says so",
        extends=True,
    ),
    Setting(
        "HOROVOD_CYCLE_TIME",
        Moment.HOROVOD,
        _cycle_time,
        "each of Horovod's cycles takes 0.2 ms of a worker's core, and more with something to "
        "average; on GPUs its default of 1 ms costs nothing. A tensor that is waited for ends the "
        "cycle",
    ),
    Setting(
        "HOROVOD_FUSION_THRESHOLD",
        Moment.HOROVOD,
        _fusion_threshold,
        "--fusion_threshold_mb; 0 with --deterministic over hosts or GPUs: what is fused depends "
        "on the time, and where a ring begins to add up on what is fused",
    ),
    Setting("HOROVOD_AUTOTUNE", Moment.HOROVOD, _autotune, "--autotune"),
    Setting(
        "HOROVOD_TIMELINE",
        Moment.HOROVOD,
        _timeline,
        "--profile_steps: Horovod's timeline can be started later only where it starts with this",
    ),
    Setting(
        NCCL_LOG,
        Moment.HOROVOD,
        _nccl_log,
        "--benchmark_passes=allreduce tells by it what the gradients travel over",
    ),
    Setting("NCCL_DEBUG_SUBSYS", Moment.HOROVOD, _nccl_subsystems, "likewise"),
    Setting("NCCL_DEBUG", Moment.HOROVOD, _nccl_level, "likewise; last: the others go by it"),
    Setting(
        _STALL_CHECK,
        Moment.HOROVOD,
        _stall_warning,
        "Horovod names the worker that others wait for after half of --watchdog_seconds",
    ),
    Setting(
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
        Moment.HOROVOD,
        _stall_shutdown,
        "Horovod ends the job where even the watchdog's longest limit has passed",
    ),
)
# Not a setting, but a message to the processes that this one starts: the cores that
# `machine.cores.bind_worker` has bound this worker to.
BOUND = "SLIM_HOROVOD_BOUND"


def has_gpu() -> bool:
    """Returns whether there is an NVIDIA driver's device file: tensors then live on the GPU."""
    return os.path.exists("/dev/nvidiactl")


def find_values(moment: Moment, situation: Situation) -> Iterator[tuple[Setting, str, bool]]:
    """Yields each setting of a moment that has a value, the value, and whether the user gave it."""
    for setting in SETTINGS:
        if setting.moment is not moment:
            continue
        given = situation.environ.get(setting.name)
        value = setting.find_value(situation)
        if given is not None and not (setting.extends and value is not None):
            yield setting, given, True
        elif value is not None:
            yield setting, value, False


def apply(
    moment: Moment,
    config: Config,
    *,
    has_gpu: bool,
    environ: MutableMapping[str, str] = os.environ,
) -> None:
    """Sets the variables that are read at a moment, but for those that the user has set.

    Args:
      moment: moment that comes next.
      config: configuration of this run.
      has_gpu: whether steps run on a GPU.
      environ: environment in which the variables are set.
    """
    for setting, value, is_given in find_values(moment, Situation(config, has_gpu, environ)):
        if not is_given:
            environ[setting.name] = value


def restart_with_settings() -> None:
    """Starts this program again in the same process, where settings of the C library are missing.

    The C library reads them once, before Python starts. Starting again costs 0.1 s.
    """
    before = dict(os.environ)
    apply(Moment.PYTHON, Config(), has_gpu=has_gpu())
    if os.environ != before:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
