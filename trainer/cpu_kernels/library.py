"""The compiled operations in src/, where they were built and this machine can run them.

They are for CPUs that have AVX-512 with bfloat16 but no matrix unit. Gradients are built with them,
see `cpu_gradients`; a session that has `OPTIMIZER` takes them for convolutions and BN, too, with
what is next to these, and to add weight decay to gradients.

Convolutions 3 x 3 take fewer multiplications than their definition has, and are rounded otherwise,
see src/winograd.h: their errors (rms) are 0.6e-6 to 1.7e-6 of the values in float32, twice
TensorFlow's, and 4e-3 to 5e-3 in bfloat16, where TensorFlow's are 1.7e-3.
"""

import functools
import importlib.machinery
from pathlib import Path
from typing import Any

import tensorflow as tf

# What setup.py builds, under the name that this Python's extensions have.
LIBRARY = Path(__file__).with_name(f"_kernels{importlib.machinery.EXTENSION_SUFFIXES[0]}")
# Of graphs: see src/graph_optimizer.cc.
OPTIMIZER = "SlimHorovodGraphOptimizer"
_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
_MATRIX_UNIT = "amx_bf16"
NOT_LOADED = "they can't be loaded"


@functools.cache
def find() -> Any:
    """The module with the operations; None where there is a `reason_for_none`."""
    return None if reason_for_none() else tf.load_op_library(str(LIBRARY))


@functools.cache
def reason_for_none(cpuinfo: Path = _CPUINFO, library: Path = LIBRARY) -> str:
    """Why TensorFlow's own operations are taken; empty where these are."""
    if tf.config.list_physical_devices("GPU"):
        return "steps run on the GPU"
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    if not flags >= _INSTRUCTIONS:
        return "this CPU lacks AVX-512 with bfloat16"
    if _MATRIX_UNIT in flags:
        return "this CPU has a matrix unit (AMX), which TensorFlow's own use"
    if not library.exists():
        return "they were not built"
    try:
        tf.load_op_library(str(library))
    except (tf.errors.OpError, RuntimeError) as error:
        return f"{NOT_LOADED} ({str(error).splitlines()[0]})"
    return ""
