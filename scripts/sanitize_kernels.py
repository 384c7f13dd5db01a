#!/usr/bin/env python3
"""Runs the tests of the compiled kernels under AddressSanitizer and UBSan.

  scripts/sanitize_kernels.py [--emulate] [--plain] [pytest arguments]

The kernels are compiled into a temporary folder, and tests/test_cpu_*.py run with them there. The
first thing that a sanitizer finds ends the tests; its report is printed, with file and line.

On a CPU without the instructions that the kernels are written with, they are compiled with the
instructions in plain C++, and so they are with --emulate. That sees more: memory that masked
instructions and gathers touch is looked at by the sanitizers in no other way. With --plain, there
are no sanitizers: the tests then say whether the kernels compute what they should, on any x86-64.

Only the kernels have the sanitizers in them. TensorFlow's memory is allocated by AddressSanitizer,
too, so that a kernel that reads or writes beyond the end of a tensor is found; what TensorFlow does
itself is not looked at. Exit status: the tests', 1 with a finding.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import program

from trainer.cpu_kernels import library, switch
from trainer.errors import UserError

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = library.LIBRARY.parent / "src"
_EMULATION = _ROOT / "tests" / "programs" / "emulated_avx512.h"
_SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    # The first would have to know the classes of TensorFlow that the kernels derive from; with the
    # others, GCC 12 does not take the address of a function for a constant, which absl needs. What
    # they look for ends a process anyway.
    "-fno-sanitize=vptr,null,nonnull-attribute,returns-nonnull-attribute",
    # Where it is defined, absl's containers have another layout than in TensorFlow.
    "-U__SANITIZE_ADDRESS__",
    "-fno-omit-frame-pointer",
    "-g1",
]
# Of a process of which a small part has sanitizers in it.
_OPTIONS = {
    # Python and TensorFlow keep what they have until the end; some libraries bring an operator
    # delete of their own.
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
_PYTEST = [
    "--capture=sys",  # Reports are written by what is not Python, and the process ends.
    "-p",
    "no:faulthandler",  # It would be asked before the sanitizer.
]
_REPORT = re.compile(r"^.*(ERROR: AddressSanitizer:|:\d+:\d+: runtime error:)", re.MULTILINE)


def compiler() -> list[str]:
    """Returns the command of the C++ compiler: $CXX, or g++."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def compile_flags(*, emulated: bool, sanitized: bool) -> list[str]:
    """Returns what the compiler is told, for TensorFlow that is installed and this CPU."""
    import tensorflow as tf

    flags = ["-fPIC", "-O1" if sanitized else "-O2", "-Wall", "-Wextra"]
    for flag in tf.sysconfig.get_compile_flags():
        # Warnings are to be of the kernels alone.
        flags += ["-isystem", flag[2:]] if flag.startswith("-I") else [flag]
    if emulated:
        has = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
        flags += [f"-m{name}" for name in ("avx2", "fma") if name in has]
        flags += ["-include", str(_EMULATION), "-Wno-psabi"]
    return flags + _SANITIZERS * sanitized


def fingerprint(command: list[str]) -> str:
    """Returns what changes with the compiler's command, the sources or TensorFlow."""
    import tensorflow as tf

    digest = hashlib.sha256(repr((tf.version.VERSION, command)).encode())
    for source in (*sorted(_SOURCES.iterdir()), _EMULATION):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def build(folder: Path, *, emulated: bool, sanitized: bool) -> Path:
    """Compiles and links the kernels, if that was not done in this folder.

    Args:
      folder: of the library and what it is made of.
      emulated: with the instructions in plain C++.
      sanitized: with AddressSanitizer and UBSan.

    Returns:
      The library's file.

    Raises:
      subprocess.CalledProcessError: the compiler, which has said why, or the linker failed.
    """
    import tensorflow as tf

    flags = compile_flags(emulated=emulated, sanitized=sanitized)
    result, stamp = folder / "kernels.so", folder / "stamp"
    made_from = fingerprint([*compiler(), *flags])
    if result.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
        return result
    stamp.unlink(missing_ok=True)

    def compile_one(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        subprocess.run([*compiler(), *flags, "-c", str(source), "-o", made], check=True)
        return made

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        objects = list(threads.map(compile_one, sorted(_SOURCES.glob("*.cc"))))
    links = [*tf.sysconfig.get_link_flags(), *_SANITIZERS * sanitized]
    subprocess.run([*compiler(), "-shared", *objects, "-o", str(result), *links], check=True)
    stamp.write_text(made_from, encoding="utf-8")
    return result


def find_runtime(name: str) -> str:
    """Returns the file of a library that comes with the compiler."""
    command = [*compiler(), f"-print-file-name={name}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        raise UserError(f"{name} is missing: install the sanitizers of {compiler()[0]}")
    return found


def environment(kernels: Path, *, emulated: bool, sanitized: bool) -> dict[str, str]:
    """Returns the environment of the tests."""
    environ = {**os.environ, switch.VARIABLE: str(kernels), "CUDA_VISIBLE_DEVICES": "-1"}
    if emulated:
        # Some tests are about what TensorFlow fuses by oneDNN, which it has off on older CPUs.
        environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    if sanitized:
        # AddressSanitizer has to be there before all else, and to find the C++ library, whose
        # exceptions it looks at.
        runtimes = ["libasan.so", "libubsan.so", "libstdc++.so.6"]
        environ["LD_PRELOAD"] = " ".join(find_runtime(name) for name in runtimes)
        environ.update(_OPTIONS)
    return environ


def run_tests(arguments: list[str], environ: dict[str, str]) -> tuple[int, str]:
    """Runs the kernels' tests.

    Returns:
      The exit status, and what was written to standard error from the first report of a sanitizer
      on; nothing, if there is none.
    """
    tests = sorted(str(path) for path in (_ROOT / "tests").glob("test_cpu_*.py"))
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        command = [sys.executable, "-m", "pytest", *tests, *arguments]
        done = subprocess.run(command, cwd=_ROOT, env=environ, stderr=said, check=False)
        said.seek(0)
        text = said.read()
    found = _REPORT.search(text)
    if found is None and done.returncode != 0:
        print(text, file=sys.stderr)
    return done.returncode, text[found.start() :] if found else ""


def main() -> int:
    """Builds the kernels, runs their tests and prints what the sanitizers report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emulate", action="store_true", help="the instructions in plain C++")
    parser.add_argument("--plain", action="store_true", help="without the sanitizers")
    parser.add_argument(
        "--folder",
        type=os.path.expanduser,
        help="keep the library there; default: a temporary folder",
    )
    arguments, of_pytest = parser.parse_known_args()
    if platform.machine() != "x86_64":
        raise UserError(f"the kernels are for x86-64, this machine is {platform.machine()}")
    emulated = arguments.emulate or not library.has_instructions()
    sanitized = not arguments.plain
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        kernels = build(Path(folder), emulated=emulated, sanitized=sanitized)
        environ = environment(kernels, emulated=emulated, sanitized=sanitized)
        status, report = run_tests([*of_pytest, *_PYTEST * sanitized], environ)
    print(report, end="")
    if sanitized and status == 0 and not report:
        print("sanitizers: no findings")
    return 1 if report else status


if __name__ == "__main__":
    program.run(main)
