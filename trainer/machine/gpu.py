"""This worker's GPU as NVIDIA's own libraries know it: which one it is, and how it is doing.

Without a GPU, its driver or the package nvidia-ml-py, there is nothing to tell, and no error.
"""

import contextlib
import ctypes
import importlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_SAMPLE_SEC = 1.0
_MIB = 2**20

# NVML's reasons for a lower clock (nvml.h, nvmlClocksEventReasons) that ask for help. A busy GPU at
# its power limit works as it should.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def find_uuid(number: int) -> str | None:
    """Returns the UUID of a GPU, by which every process of every host can tell it from others.

    Args:
      number: the GPU's number among those that this process sees, as CUDA and TensorFlow count.

    Returns:
      such as "GPU-8f1e...", as nvidia-smi prints it (for a part of a GPU, with MIG- instead); None
      where the driver can't be asked.
    """
    device, value = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        # The second version tells parts of a GPU (MIG) from each other; CUDA 11.4 brought it.
        get_uuid = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), number)
            or get_uuid(ctypes.byref(value), device)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else f"GPU-{uuid.UUID(bytes=bytes(value))}"


class Use(NamedTuple):
    """The use of a GPU over some time.

    Attributes:
      utilization_percent: share of the time in which a kernel ran, mean; None where this GPU does
        not tell.
      power_watts: power draw, mean; None where this GPU does not tell.
      memory_mib: memory in use by all processes, most.
      slowdowns: reasons for which the GPU was slower than it could be.
    """

    utilization_percent: float | None
    power_watts: float | None
    memory_mib: float
    slowdowns: tuple[str, ...]


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


class UseMeter:
    """Samples the use of a GPU once a second, in a thread."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Starts the thread.

        Args:
          nvml: the module pynvml, initialized.
          handle: NVML's handle of the GPU.
        """
        self._nvml = nvml
        self._handle = handle
        self._samples: list[Use] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.sample()
        threading.Thread(target=self._run, name="gpu-use", daemon=True).start()

    def sample(self) -> None:
        """Adds a sample.

        Raises:
          pynvml.NVMLError: this GPU does not tell.
        """
        nvml, handle = self._nvml, self._handle
        utilization, power_watts = None, None
        with contextlib.suppress(nvml.NVMLError):  # Parts of a GPU (MIG) have none of their own.
            utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        with contextlib.suppress(nvml.NVMLError):
            power_watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        slowdowns: tuple[str, ...] = ()
        with contextlib.suppress(nvml.NVMLError):
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            slowdowns = tuple(text for bit, text in _SLOWDOWNS.items() if reasons & bit)
        use = Use(
            utilization,
            power_watts,
            nvml.nvmlDeviceGetMemoryInfo(handle).used / _MIB,
            slowdowns,
        )
        with self._lock:
            self._samples.append(use)

    def take(self) -> Use | None:
        """Returns the use since the last call; None where there is no sample."""
        with self._lock:
            samples, self._samples = self._samples, []
        if not samples:
            return None
        return Use(
            _mean([sample.utilization_percent for sample in samples]),
            _mean([sample.power_watts for sample in samples]),
            max(sample.memory_mib for sample in samples),
            tuple(dict.fromkeys(text for sample in samples for text in sample.slowdowns)),
        )

    def close(self) -> None:
        """Stops the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_SAMPLE_SEC):
            try:
                self.sample()
            except self._nvml.NVMLError:  # The GPU is lost: TensorFlow will say so.
                return


@contextlib.contextmanager
def metering(number: int | None) -> Iterator[UseMeter | None]:
    """Yields a meter of a GPU's use; None where its use can't be told.

    Args:
      number: see `find_uuid`; None: this worker has no GPU.
    """
    meter = None if number is None else _create_meter(number)
    try:
        yield meter
    finally:
        if meter is not None:
            meter.close()


def _create_meter(number: int) -> UseMeter | None:
    name = find_uuid(number)
    try:
        pynvml = importlib.import_module("pynvml")  # Of nvidia-ml-py, which is optional.
    except ImportError:
        return None
    if name is None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    for each in (name, name.replace("GPU-", "MIG-")):
        with contextlib.suppress(pynvml.NVMLError):
            return UseMeter(pynvml, pynvml.nvmlDeviceGetHandleByUUID(each.encode()))
    return None
