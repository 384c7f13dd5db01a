"""Installs Horovod for the running Python's TensorFlow, building a wheel of it where there is none.

The released source does not compile against today's TensorFlow: README.md tells what is patched,
and why. Wheels are kept in the user's cache, one for each combination of what the compiled code
depends on.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from apply import HEADER, HOROVOD_VERSION, PatchError, apply_patches, read_patches

# Names that version, and the checksum of its source.
REQUIREMENT = Path(__file__).resolve().parents[2] / "requirements" / "horovod.txt"
NCCL_PACKAGE = "nvidia-nccl-cu12"


class BuildError(Exception):
    """An obstacle to the build, and what to do about it, in one line."""


SETTINGS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    # Headers that older gcc included by the way; Horovod leaves them out, and gcc 13 fails.
    "CXXFLAGS": "-include stdexcept -include string",
    # The bundled Gloo asks for a CMake that CMake 4 no longer knows how to be.
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
}

# Compiled for where there is no GPU to ask: what Horovod meets in data centres.
DEFAULT_GPU_ARCHITECTURES = ("80", "90")


def cache_key(
    versions: Mapping[str, str], settings: Mapping[str, str], *, changes: Mapping[str, str]
) -> str:
    """Returns a folder's name for everything that the compiled code depends on.

    Args:
      versions: of Horovod and of what it is compiled with.
      settings: environment variables of the build.
      changes: the texts of the patches and of what they include, by name.
    """
    ingredients = json.dumps([versions, settings, changes], sort_keys=True).encode()
    readable = "-".join(f"{name}{versions[name]}" for name in ("horovod", "tensorflow", "python"))
    return f"{readable}-{hashlib.sha256(ingredients).hexdigest()[:16]}"


def cache_folder(environ: Mapping[str, str], fallback: Path) -> Path:
    """The user's cache of wheels; under `fallback` where a home is missing or read-only."""
    home = environ.get("HOME")
    candidates = [environ.get("XDG_CACHE_HOME"), home and os.path.join(home, ".cache")]
    for candidate in filter(None, candidates):
        folder = Path(candidate, "slim-horovod")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    fallback.mkdir(parents=True, exist_ok=True)
    return fallback


def command_output(*command: str) -> str | None:
    """Returns what a command prints; None where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or done.stderr.strip()


def find_compiler() -> str:
    """The version of the C++ compiler that CMake will choose."""
    compiler = os.environ.get("CXX", "c++")
    version = command_output(*shlex.split(compiler), "-dumpversion")
    for tool, found in ((f"a C++ compiler ({compiler})", version), ("make", shutil.which("make"))):
        if not found:
            raise BuildError(
                f"{tool} is needed to build Horovod and was not found: "
                "apt-get install build-essential (Debian, Ubuntu), dnf install gcc-c++ make (RHEL)"
            )
    return str(version)


def find_cuda(environ: Mapping[str, str]) -> tuple[Path, str]:
    """The CUDA toolkit's folder and version: of $CUDA_HOME, of nvcc on $PATH, or the usual one."""
    home = environ.get("CUDA_HOME")
    named = (os.path.join(home, "bin", "nvcc"),) if home else ()
    for nvcc in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        version = re.search(r"release ([\d.]+)", command_output(nvcc, "--version") or "")
        # The nvcc on PATH may be a wrapper: nvcc itself knows best where it lies.
        dry_run = command_output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull) or ""
        folder = re.search(r"^#\$ _HERE_=(.+)$", dry_run, re.MULTILINE)
        if version is not None and folder is not None:
            return Path(folder[1]).parent, version[1]
    raise BuildError(
        "nvcc is needed for --gpu and was not found: install NVIDIA's CUDA toolkit "
        "(apt-get install nvidia-cuda-toolkit on Debian and Ubuntu, dnf install cuda-toolkit from "
        "NVIDIA's repository on RHEL) or use --cpu"
    )


def cpu_flags() -> str:
    """Compiler flags for Horovod's half precision: the vector instructions that this CPU has."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return ""
    return " ".join(f"-m{name}" for name in ("f16c", "avx", "fma") if name in words)


def gpu_architectures() -> str:
    """Compute capabilities to compile for, "80,90" for instance: of this machine's GPUs, if any."""
    said = command_output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") or ""
    found = {line.replace(".", "") for line in said.split() if re.fullmatch(r"\d+\.\d", line)}
    return ",".join(sorted(found or DEFAULT_GPU_ARCHITECTURES, key=int))


def find_nccl() -> tuple[Path, str]:
    """The folder of NCCL's wheel, made fit to link with, and its version.

    It is the one that TensorFlow depends on, whatever nvcc's version. TensorFlow's library exports
    NCCL's functions, forwarding them to the libnccl that it opens itself, and Horovod's calls meet
    those first: so that both had better be made for one and the same.

    Raises:
      BuildError: it is not installed.
    """
    folder = Path(sysconfig.get_path("purelib"), "nvidia", "nccl")
    library = folder / "lib" / "libnccl.so.2"
    try:
        version = importlib.metadata.version(NCCL_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if not (version and library.exists()):
        raise BuildError(
            f"{NCCL_PACKAGE} is not installed: pip install --requirement requirements/gpu.txt"
        )
    link = library.with_suffix("")
    if not link.exists():
        link.symlink_to(library.name)  # The linker looks for this name; the wheel leaves it out.
    return folder, version


class Build(NamedTuple):
    """A build: its wheel depends on `versions` and `settings`; `paths` are this machine's."""

    versions: Mapping[str, str]
    settings: Mapping[str, str]
    paths: Mapping[str, str]


def describe_build(*, gpu: bool) -> Build:
    """Looks at this machine and environment.

    Raises:
      BuildError: something that the build needs is missing.
    """
    mpi = command_output("mpicc", "-show")
    versions = {
        "horovod": HOROVOD_VERSION,
        "tensorflow": importlib.metadata.version("tensorflow"),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "compiler": find_compiler(),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "mpi": mpi or "none",
    }
    settings = {
        **SETTINGS,
        "HOROVOD_BUILD_ARCH_FLAGS": cpu_flags(),
        ("HOROVOD_WITH_MPI" if mpi else "HOROVOD_WITHOUT_MPI"): "1",
    }
    if not gpu:
        return Build(versions, settings, {})
    cuda, versions["cuda"] = find_cuda(os.environ)
    nccl, versions["nccl"] = find_nccl()
    settings |= {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_BUILD_CUDA_CC_LIST": gpu_architectures(),
    }
    paths = {"HOROVOD_CUDA_HOME": str(cuda), "HOROVOD_NCCL_HOME": str(nccl)}
    return Build(versions, settings, paths)


def parallel_jobs() -> int:
    """Compilers to run at once: one per usable core, and 2 GiB of free memory for each."""
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(free_gib / 2)))


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder whose path has no space in it: Horovod's build cannot quote."""
    parent = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(
        prefix="build-horovod-", dir="/tmp" if re.search(r"\s", parent) else parent
    )


def run_pip(python: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """Runs pip, whose output goes where this process's goes.

    Raises:
      BuildError: it failed.
    """
    status = subprocess.run([python, "-m", "pip", *arguments], env=env, check=False).returncode
    if status != 0:
        raise BuildError(f"pip {arguments[0]} failed with status {status}; what it said is above")


def build_wheel(build: Build, folder: Path) -> Path:
    """Fetches, patches and compiles Horovod; returns the wheel, which lies in `folder`."""
    # Horovod finds TensorFlow's headers through the interpreter's own path: here without spaces.
    prefix = folder / "env"
    prefix.symlink_to(sys.prefix, target_is_directory=True)
    python = prefix / "bin" / "python"
    run_pip(
        python, "download", "--no-deps", "--no-build-isolation", "--dest", str(folder),
        "--requirement", str(REQUIREMENT),
    )  # fmt: skip
    with tarfile.open(next(folder.glob("horovod-*.tar.gz"))) as archive:
        # Its checksum is pinned, so that it needs no filter; but Python 3.12 warns without one, and
        # early releases of 3.10 and 3.11 have none.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    source = folder / f"horovod-{HOROVOD_VERSION}"
    apply_patches(source, read_patches())
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("HOROVOD_")}
    env = {
        **inherited,
        **build.settings,
        **{name: path.replace(sys.prefix, str(prefix)) for name, path in build.paths.items()},
        "CMAKE_GENERATOR": "Unix Makefiles",  # The only one that Horovod's own arguments fit.
        "MAKEFLAGS": f"-j{parallel_jobs()}",
        "PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    run_pip(
        python, "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--wheel-dir",
        str(folder), str(source), env=env,
    )  # fmt: skip
    return next(folder.glob("horovod-*.whl"))


def is_whole(wheel: Path) -> bool:
    """Returns whether every file of the wheel reads back as it was packed."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def cached_wheel(build: Build, cache: Path) -> Path:
    """The wheel for `build`, out of `cache`, built first where it is not there."""
    changes = {**read_patches(), HEADER.name: HEADER.read_text(encoding="utf-8")}
    folder = cache / cache_key(build.versions, build.settings, changes=changes)
    for wheel in folder.glob("*.whl"):
        if is_whole(wheel):
            print(f"taking {wheel}")
            return wheel
    with scratch_folder() as scratch:
        built = build_wheel(build, Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        # Copied under another name, then renamed: a wheel of this name is always whole.
        temporary = folder / f"{built.name}.{os.getpid()}"
        shutil.copyfile(built, temporary)
        return temporary.replace(folder / built.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="with CUDA and NCCL")
    parser.add_argument("--check", action="store_true", help="only look whether it can be built")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Not without clearing up.
    try:
        if args.check:
            find_compiler()
            if args.gpu:
                find_cuda(os.environ)
            return 0
        cache = cache_folder(os.environ, fallback=Path(sys.prefix, ".slim-horovod", "cache"))
        wheel = cached_wheel(describe_build(gpu=args.gpu), cache)
        run_pip(
            Path(sys.executable), "install", "--no-deps", "--no-index", "--force-reinstall",
            str(wheel),
        )  # fmt: skip
    except (BuildError, PatchError) as error:
        print(f"build_horovod: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
