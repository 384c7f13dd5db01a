"""Packaging. `scripts/setup.sh` is the way to a working environment: it also builds Horovod."""

from setuptools import find_packages, setup

setup(
    name="slim-horovod",
    version="0.1.0",
    description="tf-slim ResNet-v2 on many GPUs with Horovod, watched in TensorBoard.",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["flags", "models", "trainer", "trainer.*"]),
    entry_points={"console_scripts": ["slim-horovod = trainer.__main__:main"]},
    # Ranges hold what was tried. tf-slim and the Horovod build reach into TensorFlow's internals,
    # so a new minor version of TensorFlow is a port, not an upgrade.
    install_requires=[
        "absl-py>=2.1,<3",
        "google-crc32c>=1.5,<2",
        "numpy>=1.26,<3",
        "pillow>=10",
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
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "build": ["cmake>=3.18", "packaging", "pip", "setuptools", "wheel"],
        "demo": ["scikit-learn>=1.4"],
        "report": ["matplotlib>=3.9,<4"],
        "dev": ["mypy", "pytest>=8", "ruff"],
    },
)
