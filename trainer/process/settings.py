"""The memory allocator of a process that computes on CPUs. Nothing here imports TensorFlow."""

import os
import sys
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"

# TensorFlow takes every large tensor from malloc and gives it back at once. With pages of 4 KiB a
# step spends a tenth of its time on the kernel's handing them out; resnet_v2_50, batch 32,
# bfloat16, 2 cores: 2.43 s a step without huge pages, 2.24 s with them. One arena: memory that one
# thread gives back serves the others.
_TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


def has_gpu() -> bool:
    """Whether there is an NVIDIA driver's device file: tensors then live on the GPU."""
    return os.path.exists("/dev/nvidiactl")


def find_settings(environ: Mapping[str, str] = os.environ) -> str | None:
    """What `VARIABLE` is to be for this process; None: it stays as it is.

    The user's own setting stays, and so does everything where the tensors live on a GPU.
    """
    return None if VARIABLE in environ or has_gpu() else _TUNABLES


def restart_with_settings() -> None:
    """Starts this program again in the same process, with `VARIABLE`, where it is missing.

    The C library reads it once, before Python starts. It costs 0.1 s.
    """
    settings = find_settings()
    if settings is not None:
        os.environ[VARIABLE] = settings
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
