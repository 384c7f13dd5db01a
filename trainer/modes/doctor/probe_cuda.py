"""Asks NVIDIA's driver and libraries for their versions, those first that TensorFlow has loaded."""

import ctypes
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Ask = Callable[[ctypes.CDLL], int]


def find(tensorflow: Any, horovod_nccl: int) -> dict[str, Any]:
    """Returns the versions as NVIDIA codes them, and those that TensorFlow was built with.

    Args:
      tensorflow: the module, which has looked for GPUs.
      horovod_nccl: version of NCCL that Horovod was built with; 0: it was built without.

    Returns:
      by name: "driver" (the newest CUDA that it can run), "cudart", "cudnn", "nccl": codes of what
      is there, else None; "tensorflow_cuda", "tensorflow_cudnn": texts, else None; "horovod_nccl";
      "gpus", how many TensorFlow sees.
    """
    build = tensorflow.sysconfig.get_build_info()
    return {
        "driver": _version("libcuda.so.1", _by_pointer("cuDriverGetVersion")),
        "cudart": _version("libcudart.so.12", _by_pointer("cudaRuntimeGetVersion")),
        "cudnn": _version("libcudnn.so.9", _returned("cudnnGetVersion")),
        "nccl": _version("libnccl.so.2", _by_pointer("ncclGetVersion")),
        "tensorflow_cuda": build.get("cuda_version"),
        "tensorflow_cudnn": build.get("cudnn_version"),
        "horovod_nccl": horovod_nccl,
        "gpus": len(tensorflow.config.list_physical_devices("GPU")),
    }


def _by_pointer(function: str) -> Ask:
    def ask(library: ctypes.CDLL) -> int:
        version = ctypes.c_int()
        return 0 if getattr(library, function)(ctypes.byref(version)) else version.value

    return ask


def _returned(function: str) -> Ask:
    def ask(library: ctypes.CDLL) -> int:
        getattr(library, function).restype = ctypes.c_size_t
        return getattr(library, function)()

    return ask


def _version(name: str, ask: Ask) -> int | None:
    """Returns what the first library of this name says that can be opened; None: there is none."""
    for path, mode in _places(name):
        try:
            return ask(ctypes.CDLL(path, mode)) or None
        except (OSError, AttributeError):
            continue
    return None


def _places(name: str) -> Iterator[tuple[str, int]]:
    yield name, os.RTLD_NOLOAD | os.RTLD_LAZY
    for path in Path(sysconfig.get_path("purelib"), "nvidia").glob(f"*/lib/{name}"):
        yield str(path), os.RTLD_LAZY
    yield name, os.RTLD_LAZY
