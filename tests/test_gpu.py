# ruff: noqa: N802 (names of the libraries' functions)
"""A worker's GPU by NVIDIA's libraries, which stand-ins take the place of.

Their functions are those of libcuda (CUDA 13.0, cuda.h) and of nvidia-ml-py 13.615.71.
"""

import ctypes
import sys
import types

import pytest
import test_agreement
import test_telemetry

from trainer.distributed import Group
from trainer.errors import UserError
from trainer.machine import gpu, session
from trainer.safety import agreement
from trainer.telemetry import console, step_log
from trainer.telemetry.memory_use import MemoryUse
from trainer.telemetry.slow_worker import SlowWorkerWatch

UUIDS = [bytes(range(16)), bytes(range(16, 32))]
NAMES = ["GPU-00010203-0405-0607-0809-0a0b0c0d0e0f", "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f"]


class Driver:
    """libcuda with two GPUs."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0 if number < len(UUIDS) else 101  # CUDA_ERROR_INVALID_DEVICE

    def cuDeviceGetUuid(self, uuid, device):
        ctypes.memmove(uuid._obj, UUIDS[device.value], 16)
        return 0


class NVMLError(Exception):
    pass


class Nvml(types.ModuleType):
    """pynvml with a GPU that is busy and hot, and one that tells less."""

    NVMLError = NVMLError

    def __init__(self):
        super().__init__("pynvml")
        self.readings = [(100, 10, 0), (50, 30, 0x44)]

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, name):
        if name.decode() not in NAMES:
            raise NVMLError("Not Found")
        return NAMES.index(name.decode())

    def nvmlDeviceGetUtilizationRates(self, handle):
        return types.SimpleNamespace(gpu=self.readings[0][0], memory=1)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return types.SimpleNamespace(total=80 * 2**30, used=self.readings.pop(0)[1] * 2**20)

    def nvmlDeviceGetPowerUsage(self, handle):
        if handle:
            raise NVMLError("Not Supported")
        return 650_500  # Milliwatts.

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.readings[0][2]


@pytest.fixture
def nvidia(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver() if name == "libcuda.so.1" else None)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(gpu, "_SAMPLE_SEC", 1e9)
    return sys.modules["pynvml"]


def test_a_gpu_is_told_by_its_uuid(nvidia):
    assert [gpu.find_uuid(number) for number in range(3)] == [*NAMES, None]


def test_without_a_driver_there_is_nothing_to_tell():
    """As on the machines that these tests run on."""
    if gpu.find_uuid(0) is not None:
        pytest.skip("this machine has a GPU")
    with gpu.metering(0) as meter:
        assert meter is None
    with gpu.metering(None) as meter:
        assert meter is None


def test_without_its_package_there_is_nothing_to_tell(nvidia, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu.metering(0) as meter:
        assert meter is None


@pytest.mark.parametrize(("number", "power"), [(0, 650.5), (1, None)])
def test_the_use_since_the_last_call_is_told(nvidia, number, power):
    with gpu.metering(number) as meter:
        meter.sample()
        assert meter.take() == gpu.Use(75, power, 30, ("hardware thermal slowdown",))
        assert meter.take() is None


def test_a_gpu_that_can_not_be_read_is_no_error(nvidia, monkeypatch):
    def lost(handle):
        raise NVMLError("GPU is lost")

    monkeypatch.setattr(nvidia, "nvmlDeviceGetMemoryInfo", lost, raising=False)
    with gpu.metering(0) as meter:
        assert meter is None


class Said(console.NullConsole):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_the_least_and_the_most_of_all_workers_are_logged(nvidia):
    nvidia.readings = [(100, 10, 0)] * 4
    recorder, said = test_telemetry.Recorder(), Said()
    heat = ["hardware thermal slowdown"]
    group = test_telemetry.ThreeWorkers(
        ([0.1], [0.0], 0, 1.0, None, [50.0, 300.0, 1000.0, heat]),
        ([0.1], [0.0], 0, 1.0, None, None),  # Without nvidia-ml-py.
    )
    with gpu.metering(0) as meter:
        of_three, of_one = (
            step_log.StepLog(
                workers,
                recorder,
                said,
                images_per_step=1,
                count_bad_examples=lambda: 0,
                memory_use=MemoryUse(local_rank=0),
                watch=SlowWorkerWatch(names),
                gpu_meter=meter,
            )
            for workers, names in ((group, ["a", "b", "c"]), (Group(), ["a"]))
        )
        for number, log in enumerate((of_three, of_three, of_one), start=1):
            log.add(test_telemetry.step(number))
            log.flush()
            meter.sample()
    first = {tag: value for tag, value in recorder.steps[1].items() if tag.startswith("perf/gpu_")}
    assert first == {
        "perf/gpu_utilization_percent": 75,
        "perf/gpu_utilization_percent_least": 50,
        "perf/gpu_utilization_percent_most": 100,
        "perf/gpu_power_watts": 475.25,
        "perf/gpu_power_watts_least": 300,
        "perf/gpu_power_watts_most": 650.5,
        "perf/gpu_memory_mib": 505,
        "perf/gpu_memory_mib_least": 10,
        "perf/gpu_memory_mib_most": 1000,
    }
    alone = {tag for tag in recorder.steps[3] if tag.startswith("perf/gpu_")}
    assert alone == {tag for tag in first if not tag.endswith(("_least", "_most"))}
    (line,) = [line for line in said.lines if "slowed down" in line]
    assert line.startswith("the GPU of worker 1 is slowed down (hardware thermal slowdown): see ")


def test_two_workers_with_the_same_gpu_are_refused(nvidia, monkeypatch):
    monkeypatch.setattr(session.tf.config, "list_physical_devices", lambda kind: ["one", "two"])
    agreement.check_gpus(
        test_agreement.OtherWorkers(lambda name: None if name is None else "GPU-b")
    )
    with pytest.raises(UserError) as caught:
        agreement.check_gpus(
            test_agreement.OtherWorkers(lambda name: name and "b", lambda name: name)
        )
    assert str(caught.value) == (
        f"worker 2 of 3 has the GPU of worker 0 ({NAMES[0]}): give each its own, by the launcher's "
        "options or CUDA_VISIBLE_DEVICES"
    )


def test_a_worker_without_a_gpu_is_compared_with_none():
    agreement.check_gpus(test_agreement.OtherWorkers(lambda name: name))
    agreement.check_gpus(Group())
