"""The compiled kernels' tests where the CPU can't run them: with their instructions emulated."""

import platform
import re
import shutil
import subprocess
from types import SimpleNamespace

import kernel_summary
import kernels
import numpy as np
import pytest
import sanitize_kernels
import tensorflow as tf
from processes import ROOT, run

from trainer.cpu_kernels import library, switch

PROGRAMS = ROOT / "tests" / "programs"
# Nearly all: large maps and whole networks take as long as the rest.
SUBSET = "not large and not test_a_network"
needs_compiler = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which(sanitize_kernels.compiler()[0]) is None,
    reason="a C++ compiler for x86-64 is needed",
)


def vector_results(folder, *, emulated):
    """The output of vector_results.cc: [vectors, results, lanes] bit patterns, all NaN alike."""
    program = folder / f"vector_results_{emulated}"
    flags = ["-include", PROGRAMS / "emulated_avx512.h", "-Wno-psabi"] * emulated
    source = PROGRAMS / "vector_results.cc"
    compile_it = [*sanitize_kernels.compiler(), "-std=c++17", "-O2", *flags, source, "-o", program]
    subprocess.run(compile_it, check=True)
    printed = subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout
    bits = np.frombuffer(printed, np.uint32).reshape(-1, 13, 16)
    return np.where(np.isnan(bits.view(np.float32)), np.uint32(0x7FC00000), bits)


@pytest.mark.slow
@needs_compiler
def test_emulated_rounding_to_bfloat16_is_that_of_the_manual(tmp_path):
    values, rounded = vector_results(tmp_path, emulated=True)[:, :2].swapaxes(0, 1)
    is_flushed = values & 0x7F800000 == 0
    expected = values.view(np.float32).astype(tf.bfloat16.as_numpy_dtype).view(np.uint16)
    expected = np.where(is_flushed, values >> 16 & 0x8000, expected)
    is_nan = np.isnan(values.view(np.float32))
    np.testing.assert_array_equal(rounded[~is_nan], expected[~is_nan])
    assert (rounded[is_nan] & 0x7FC0 == 0x7FC0).all()
    assert is_flushed.any()
    assert is_nan.any()


@needs_compiler
@pytest.mark.skipif(not library.has_instructions(), reason="this CPU lacks the instructions")
def test_what_is_emulated_is_what_the_cpu_computes(tmp_path):
    by_cpu, emulated = (vector_results(tmp_path, emulated=each) for each in (False, True))
    np.testing.assert_array_equal(emulated, by_cpu)


@pytest.mark.slow
@pytest.mark.processes
@needs_compiler
@pytest.mark.skipif(library.has_instructions(), reason="this CPU can run the kernels themselves")
def test_the_kernels_pass_their_tests_by_emulation(request, record_property):
    folder = request.config.cache.mkdir("emulated_kernels")
    command = [ROOT / "scripts" / "sanitize_kernels.py", "--plain", "--emulate"]
    selection = ["-q", "-m", "not slow and not processes", "-k", SUBSET]
    done = run([*command, f"--folder={folder}", *selection], timeout_sec=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    record_property(kernel_summary.EMULATED, int(re.search(r"(\d+) passed", done.stdout)[1]))


def report(nodeid, outcome, *properties, reason=None):
    return pytest.TestReport(
        nodeid=nodeid,
        location=("", 0, ""),
        keywords={},
        outcome=outcome,
        longrepr=("file", 1, f"Skipped: {reason}") if reason else None,
        when="call",
        user_properties=properties,
    )


PLAIN = report("test_cpu_switch.py::test_a", "passed", (kernel_summary.HOW, ""))
SKIPPED = report("test_cpu_norm.py::test_b", "skipped", reason="kernels: they were not built")
NATIVE = report("test_cpu_norm.py::test_b", "passed", (kernel_summary.HOW, "natively"))
FAILED = report("test_cpu_norm.py::test_c", "failed", (kernel_summary.HOW, "natively"))
BY_EMULATION = report("test_emulated.py::test_d", "passed", (kernel_summary.EMULATED, 7))


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([BY_EMULATION, report("test_files.py::test_e", "passed")], ""),
        ([PLAIN, SKIPPED], "compiled kernels: not tested: they were not built"),
        ([PLAIN, SKIPPED, BY_EMULATION], "compiled kernels: tested by emulation (7 tests)"),
        ([PLAIN, NATIVE, FAILED], "compiled kernels: tested natively"),
        ([PLAIN, FAILED], "compiled kernels: not tested: no test needed them"),
    ],
)
def test_how_they_were_tested_is_told(reports, expected):
    assert kernel_summary.describe(reports) == expected


def test_how_they_run_is_told(monkeypatch):
    monkeypatch.setattr(library, "reason_for_none", lambda: "")
    monkeypatch.delenv(switch.VARIABLE, raising=False)
    assert kernels.describe() == "natively"
    monkeypatch.setattr(switch, "read", lambda: switch.Setting(is_on=True, library="other.so"))
    assert kernels.describe() == "with other.so"
    monkeypatch.setattr(library, "reason_for_none", lambda: "they were not built")
    assert kernels.describe() == ""


@pytest.mark.parametrize(
    "report",
    [
        "==7==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x6",
        "src/vectors.h:45:8: runtime error: signed integer overflow",
    ],
)
def test_what_a_sanitizer_reports_is_printed_and_is_a_failure(
    monkeypatch, tmp_path, capsys, report
):
    def build(folder, **settings):
        assert settings == {"emulated": True, "sanitized": True}
        return folder / "kernels.so"

    def run_tests(command, *, env, stderr, **settings):
        assert env[switch.VARIABLE] == str(tmp_path / "kernels.so")
        stderr.write(f"some noise\n{report}\nmore\n")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(sanitize_kernels, "build", build)
    monkeypatch.setattr(sanitize_kernels, "find_runtime", lambda name: name)
    monkeypatch.setattr(sanitize_kernels.subprocess, "run", run_tests)
    monkeypatch.setattr("sys.argv", ["sanitize_kernels.py", "--emulate", f"--folder={tmp_path}"])
    assert sanitize_kernels.main() == 1
    assert capsys.readouterr().out == f"{report}\nmore\n"
