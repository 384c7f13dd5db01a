"""The compiled operations in src/, where they were built and this machine can run them.

They are for CPUs that have AVX-512 with bfloat16. `gradients` builds them into a graph; a session
whose options went through `add_optimizer` puts them in the place of convolutions and batch
normalization (BN), with what is next to these, and of the addition of weight decay. With a matrix
unit (AMX), convolutions of bfloat16 stay TensorFlow's, with what it fuses with them. The README
beside this file tells what they compute, how exactly, and how they are tested.
"""

import ctypes
import functools
import importlib.machinery
import os
from collections.abc import Set
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from trainer.cpu_kernels import switch

# What setup.py builds, under the name that this Python's extensions have.
LIBRARY = Path(__file__).with_name(f"_kernels{importlib.machinery.EXTENSION_SUFFIXES[0]}")
# The name of the optimizer of graphs: see src/graph_optimizer.cc.
OPTIMIZER = "SlimHorovodGraphOptimizer"
KEEPS_BFLOAT16_CONVOLUTIONS = "keeps_bfloat16_convolutions"  # A parameter of it.
_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
# Of an x86 CPU's flags, those of a matrix unit, with which oneDNN multiplies values of a type.
_MATRIX_UNIT_OF = {tf.bfloat16: "amx_bf16"}
# Of an x86 CPU's flags, those of which oneDNN needs one for a type of low precision.
_INSTRUCTIONS_OF = {
    tf.bfloat16: {"avx512f"},
    tf.float16: {"avx512_fp16"},
}
NOT_LOADED = "they can't be loaded"


def find() -> Any:
    """Returns the module with the operations; None where there is a `reason_for_none`.

    The environment is asked each time (see `switch`), and a library is loaded once. A graph, its
    gradients and the session that runs it are to be made under one setting.

    Raises:
      UserError: the environment variable has a value that its rule forbids.
    """
    setting = switch.read()
    return None if reason_for_none() else _load(setting.library or LIBRARY)


def multiply_adds_left_out() -> int:
    """Returns how many multiply-adds of convolutions were not made in this process so far.

    By its definition a convolution has out pixels x filter elements of them; tiles (src/winograd.h)
    need fewer. 0 where the operations are not taken.
    """
    if find() is None:
        return 0
    library = ctypes.CDLL(str(switch.read().library or LIBRARY))  # It is loaded already.
    count = library.SlimHorovodMultiplyAddsLeftOut
    count.restype = ctypes.c_int64
    return int(count())


def describe(dtype: tf.DType) -> str:
    """Returns which compiled operations are used: "on", "on but for convolutions" or "off".

    Args:
      dtype: the type of activations.

    Raises:
      UserError: the environment variable has a value that its rule forbids.
    """
    if reason_for_none():
        return "off"
    return "on but for convolutions" if reason_for_no_convolutions(dtype) else "on"


def add_optimizer(options: RewriterConfig) -> None:
    """Makes sessions with these options put compiled operations, if any, into their graphs.

    Raises:
      UserError: the environment variable has a value that its rule forbids.
    """
    if find() is None:
        return
    optimizer = options.custom_optimizers.add(name=OPTIMIZER)
    keeps = bool(reason_for_no_convolutions(tf.bfloat16))
    optimizer.parameter_map[KEEPS_BFLOAT16_CONVOLUTIONS].b = keeps


def has_instructions(cpuinfo: Path = _CPUINFO) -> bool:
    """Returns whether this CPU has the instructions that the operations are written with."""
    return cpu_flags(cpuinfo) >= _INSTRUCTIONS


def lacks_instructions(dtype: tf.DType, flags: Set[str] | None = None) -> bool:
    """Returns whether an x86 CPU is known to have no instructions for a type of low precision.

    oneDNN has bfloat16 and float16 only with them; with AVX-512 alone, bfloat16 by way of float32.

    Args:
      dtype: the type.
      flags: the CPU's flags, as Linux names them; None: this CPU's.
    """
    flags = cpu_flags() if flags is None else flags
    return "sse2" in flags and not flags & _INSTRUCTIONS_OF.get(dtype, flags)


def sums_in_float32(dtype: tf.DType) -> bool:
    """Returns whether TensorFlow's own convolutions of a type are sure to have float32 sums here.

    They are oneDNN's on x86 CPUs where it has the type and is not turned off, else Eigen's.
    """
    if dtype not in _INSTRUCTIONS_OF:
        return True
    return _has_onednn() and bool(cpu_flags() & _INSTRUCTIONS_OF[dtype])


def _has_onednn() -> bool:
    """Returns whether TensorFlow's own operations of x86 CPUs are oneDNN's."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() not in ("0", "false")


def reason_for_none(cpuinfo: Path = _CPUINFO, library: Path = LIBRARY) -> str:
    """Returns why TensorFlow's own operations are taken; nothing where these are.

    Args:
      cpuinfo: the file that lists what the CPU can do.
      library: the file that setup.py builds.

    Raises:
      UserError: the environment variable has a value that its rule forbids.
    """
    return _find_reason(switch.read(), cpuinfo, library)


def reason_for_no_convolutions(dtype: tf.DType) -> str:
    """Returns why convolutions of a type stay TensorFlow's, where there are compiled operations.

    By a matrix unit (AMX) oneDNN's take a quarter of the time of the compiled ones, and gradients
    by filters two thirds (docs/experiments.md). What else a step has of the type is faster by the
    compiled ones. A library that the environment names takes all.

    Args:
      dtype: the type.

    Raises:
      UserError: the environment variable has a value that its rule forbids.
    """
    unit = _MATRIX_UNIT_OF.get(dtype)
    if unit is None or unit not in cpu_flags() or not _has_onednn() or switch.read().library:
        return ""
    return "this CPU has a matrix unit (AMX), which TensorFlow's own use"


@functools.cache
def _find_reason(setting: switch.Setting, cpuinfo: Path, library: Path) -> str:
    if not setting.is_on:
        return f"{switch.VARIABLE}=0 turns them off"
    if tf.config.list_physical_devices("GPU"):
        return "steps run on the GPU"
    reason = "" if setting.library else _find_obstacle(cpuinfo, library)
    if reason:
        return reason
    try:
        _load(setting.library or library)
    except (tf.errors.OpError, RuntimeError) as error:
        return f"{NOT_LOADED} ({str(error).splitlines()[0]})"
    return ""


def _find_obstacle(cpuinfo: Path, library: Path) -> str:
    """Returns what is missing for the built operations; nothing where all is there."""
    if not has_instructions(cpuinfo):
        return "this CPU lacks AVX-512 with bfloat16"
    if not library.exists():
        return "they were not built"
    return ""


@functools.cache  # It is asked for every convolution, and is long where there are many CPUs.
def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Returns what the CPU can do, and other words of the file that lists it."""
    try:
        return frozenset(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return frozenset()


@functools.cache
def _load(library: Path) -> Any:
    return tf.load_op_library(str(library))
