"""Which tests of the compiled kernels this machine can run."""

from pathlib import Path

import pytest
import tensorflow as tf

from trainer.cpu_kernels import library

needs_kernels = pytest.mark.skipif(
    bool(library.reason_for_none()), reason=f"kernels: {library.reason_for_none()}"
)
_CPUINFO = Path("/proc/cpuinfo")


def skip_without_onednn(dtype):
    """Skips a test of what TensorFlow does by oneDNN alone, if that has not this type here.

    Where the kernels are emulated, the CPU may lack what oneDNN needs for bfloat16.
    """
    if dtype == tf.bfloat16 and "avx512f" not in _CPUINFO.read_text(encoding="utf-8").split():
        pytest.skip("oneDNN has bfloat16 only on CPUs with AVX-512")
