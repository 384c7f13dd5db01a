"""Compares the versions of NVIDIA's driver and libraries that have to fit each other."""

from collections.abc import Iterator
from typing import Any

from trainer.modes.doctor.finding import Finding

_GPU = "run scripts/setup.sh --gpu"


def check_cuda(found: dict[str, Any]) -> Iterator[Finding]:
    """Yields the versions, and which pair of them does not fit.

    Args:
      found: versions by `probe_cuda.find`; None for what is not there.
    """
    if "error" in found or not found["driver"]:
        return  # Without Horovod, which has its own finding, or without GPUs.
    driver = _Version.of_cuda(found["driver"])
    yield Finding("CUDA", f"driver {driver}; {_list(found)}")
    if not found["cudart"]:
        return  # An environment that is meant to do without GPUs.
    yield from _check_driver(driver, found["tensorflow_cuda"])
    cudnn, wanted = found["cudnn"], found["tensorflow_cudnn"]
    if cudnn and wanted and _Version.of_cudnn(cudnn)[0] != _Version.parse(wanted)[0]:
        text = f"{_Version.of_cudnn(cudnn)}, but TensorFlow was built with {wanted}"
        yield Finding("cuDNN", text, _GPU)
    nccl, built = found["nccl"], found["horovod_nccl"]
    if built and not nccl:
        yield Finding("NCCL", "Horovod was built with it, but it is not there", _GPU)
    elif built and _Version.of_nccl(nccl) < _Version.of_nccl(built):
        text = f"{_Version.of_nccl(nccl)}, but Horovod was built with {_Version.of_nccl(built)}"
        yield Finding("NCCL", text, f"{_GPU}, and keep another libnccl.so.2 off LD_LIBRARY_PATH")
    elif not built and found["gpus"]:
        yield Finding("NCCL", f"Horovod was built without it, and averages by the host: {_GPU}")


def _check_driver(driver: "_Version", wanted: str | None) -> Iterator[Finding]:
    """Yields a finding where the driver is older than TensorFlow's CUDA.

    CUDA 12's libraries run on drivers of CUDA 12 and later, of any minor version.
    """
    if wanted and driver[0] < _Version.parse(wanted)[0]:
        yield Finding(
            "driver",
            f"of CUDA {driver}, but TensorFlow was built with CUDA {wanted}",
            "install a newer one: for CUDA 12 525 or later (nvidia-smi shows it)",
        )


def _list(found: dict[str, Any]) -> str:
    parts = [f"TensorFlow was built with CUDA {found['tensorflow_cuda']}"]
    if found["cudart"]:
        parts.append(f"libcudart {_Version.of_cuda(found['cudart'])}")
    if found["cudnn"]:
        parts.append(f"cuDNN {_Version.of_cudnn(found['cudnn'])}")
    if found["nccl"]:
        parts.append(f"NCCL {_Version.of_nccl(found['nccl'])}")
    if found["horovod_nccl"]:
        parts.append(f"Horovod was built with NCCL {_Version.of_nccl(found['horovod_nccl'])}")
    return ", ".join(parts)


class _Version(tuple[int, ...]):
    """A version, which is printed with dots."""

    def __str__(self) -> str:
        return ".".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> "_Version":
        return cls(int(part) for part in text.split("."))

    @classmethod
    def of_cuda(cls, code: int) -> "_Version":
        """Returns a code's version: 13000 is 13.0 (cuda.h)."""
        return cls((code // 1000, code % 1000 // 10))

    @classmethod
    def of_cudnn(cls, code: int) -> "_Version":
        """Returns a code's version: 91900 is 9.19.0; before 9, 8907 was 8.9.7 (cudnn_version.h)."""
        major = 10000 if code >= 90000 else 1000
        return cls((code // major, code % major // 100, code % 100))

    @classmethod
    def of_nccl(cls, code: int) -> "_Version":
        """Returns a code's version: 22809 is 2.28.9; before 2.9, 2804 was 2.8.4 (nccl.h)."""
        major = 10000 if code >= 10000 else 1000
        return cls((code // major, code % major // 100, code % 100))
