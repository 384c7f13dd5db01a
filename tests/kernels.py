"""The tests of the compiled kernels that this machine can run, and how."""

from pathlib import Path

import kernel_summary
import pytest
import tensorflow as tf

from trainer.cpu_kernels import library, switch

needs_kernels = pytest.mark.skipif(
    bool(library.reason_for_none()),
    reason=f"{kernel_summary.REASON}{library.reason_for_none()}",
)
_CPUINFO = Path("/proc/cpuinfo")


def skip_without_onednn(dtype):
    """Skips a test of what TensorFlow does by oneDNN alone, if that has not this type here.

    Where the kernels are emulated, the CPU may lack what oneDNN needs for bfloat16.
    """
    if dtype == tf.bfloat16 and "avx512f" not in _CPUINFO.read_text(encoding="utf-8").split():
        pytest.skip("oneDNN has bfloat16 only on CPUs with AVX-512")


def describe():
    """Returns how tests run the kernels, in a word or two; empty where they can't."""
    if library.reason_for_none():
        return ""
    given = switch.read().library
    return "natively" if given in (None, library.LIBRARY) else f"with {given}"


def all_of_them(monkeypatch):
    """Makes this process use all kernels that it can run, also where TensorFlow's are faster."""
    if library.find() is not None and library.reason_for_no_convolutions(tf.bfloat16):
        monkeypatch.setenv(switch.VARIABLE, str(library.LIBRARY))
