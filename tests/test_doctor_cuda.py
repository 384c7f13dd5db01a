"""Versions of NVIDIA's driver and libraries that do not fit each other, by doctor."""

import pytest
import tensorflow as tf

from trainer.modes.doctor.cuda import check_cuda
from trainer.modes.doctor.probe_cuda import find

# TensorFlow 2.21's wheel, requirements/gpu.txt, Horovod built by setup.sh --gpu, driver 580.
GOOD = {
    "driver": 13000,
    "cudart": 12090,
    "cudnn": 92800,
    "nccl": 23203,
    "tensorflow_cuda": "12.5.1",
    "tensorflow_cudnn": "9",
    "horovod_nccl": 23203,
    "gpus": 8,
}


def test_what_fits_is_one_line():
    (finding,) = check_cuda(GOOD)
    assert finding == (
        "CUDA",
        "driver 13.0; TensorFlow was built with CUDA 12.5.1, libcudart 12.9, cuDNN 9.28.0, "
        "NCCL 2.32.3, Horovod was built with NCCL 2.32.3",
        None,
    )


@pytest.mark.parametrize(
    ("changes", "title", "text", "remedy"),
    [
        (
            {"driver": 11040, "gpus": 0},  # 470.
            "driver",
            "of CUDA 11.4, but TensorFlow was built with CUDA 12.5.1",
            "install a newer one",
        ),
        ({"cudnn": 8907}, "cuDNN", "8.9.7, but TensorFlow was built with 9", "--gpu"),
        ({"nccl": 22809}, "NCCL", "2.28.9, but Horovod was built with 2.32.3", "LD_LIBRARY_PATH"),
        ({"nccl": 2804}, "NCCL", "2.8.4, but Horovod was built with 2.32.3", "LD_LIBRARY_PATH"),
        ({"nccl": None}, "NCCL", "Horovod was built with it, but it is not there", "--gpu"),
    ],
)
def test_the_pair_that_does_not_fit_is_told(changes, title, text, remedy):
    _, finding = check_cuda(GOOD | changes)
    assert (finding.title, finding.text) == (title, text)
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"nccl": 23300},  # Newer than that of the build.
        {"driver": 12020},  # Older than TensorFlow's CUDA, but of its major version.
        {"horovod_nccl": 0, "nccl": None},
        {"cudart": None, "driver": 11040},  # Made by setup.sh --cpu.
    ],
)
def test_what_works_is_not_broken(changes):
    assert all(finding.remedy is None for finding in check_cuda(GOOD | changes))


@pytest.mark.parametrize("found", [GOOD | {"driver": None}, {"error": "ImportError: horovod"}])
def test_without_a_driver_nothing_is_told(found):
    assert list(check_cuda(found)) == []


def test_versions_are_asked_for_and_may_be_absent():
    found = find(tf, 0)
    assert set(found) == set(GOOD)
    assert found["tensorflow_cuda"] is None or found["tensorflow_cuda"].count(".") >= 1
