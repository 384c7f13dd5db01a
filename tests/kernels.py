"""Which tests of the compiled kernels this machine can run, and which it has run."""

from pathlib import Path

import pytest
import tensorflow as tf

from trainer.cpu_kernels import library, switch

needs_kernels = pytest.mark.skipif(
    bool(library.reason_for_none()), reason=f"kernels: {library.reason_for_none()}"
)
_CPUINFO = Path("/proc/cpuinfo")
# A property of the test that runs others by emulation: how many.
EMULATED = "emulated_kernel_tests"


def skip_without_onednn(dtype):
    """Skips a test of what TensorFlow does by oneDNN alone, if that has not this type here.

    Where the kernels are emulated, the CPU may lack what oneDNN needs for bfloat16.
    """
    if dtype == tf.bfloat16 and "avx512f" not in _CPUINFO.read_text(encoding="utf-8").split():
        pytest.skip("oneDNN has bfloat16 only on CPUs with AVX-512")


def describe_tests(passed):
    """How the kernels were tested, in one line, by the reports of tests that have passed."""
    emulated = sum(dict(report.user_properties).get(EMULATED, 0) for report in passed)
    reason = library.reason_for_none()
    if not reason:
        given = switch.read().library
        return f"tested with {given}" if given else "tested natively"
    return f"tested by emulation ({emulated} tests)" if emulated else f"not tested: {reason}"
