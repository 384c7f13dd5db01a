"""Measures the memory that this process has used, and limits what it may use."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from trainer.machine import free_memory


def _prepare_gpu(local_rank: int = 0) -> bool:
    """Returns whether there is a GPU; if so, prepares this worker's to be asked for statistics."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return False
    gpu = gpus[local_rank % len(gpus)]
    # Memory statistics come from the eager runtime, which nothing else here starts. By default it
    # would take all memory of all GPUs.
    tf.config.set_visible_devices(gpu, "GPU")
    tf.config.experimental.set_memory_growth(gpu, True)
    return True


def reset_peak() -> None:
    """Begins a new measurement of `peak_bytes`.

    Where the kernel does not allow that, the peak of the whole process stays.
    """
    if _prepare_gpu():
        tf.config.experimental.reset_memory_stats("GPU:0")
        return
    with contextlib.suppress(OSError):  # Some containers have a /proc that nobody may write to.
        # Resets VmHWM: see proc(5), clear_refs.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Returns the most bytes in use since `reset_peak`: on the GPU, else of the resident set."""
    on_device = device_peak_bytes()
    return resident_peak_bytes() if on_device is None else on_device


def resident_peak_bytes() -> int:
    """Returns the most bytes of main memory that this process has held at a time."""
    return free_memory.read_kilobytes("/proc/self/status", "VmHWM")


def device_peak_bytes(local_rank: int = 0) -> int | None:
    """Returns the most bytes in use in the allocator of this worker's GPU; None without a GPU."""
    if not _prepare_gpu(local_rank):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


@contextlib.contextmanager
def limited_to_available() -> Iterator[None]:
    """Makes allocations inside fail where main memory has no room for them.

    Without a limit the kernel grants them, and kills this process, or another, when they are used.
    GPUs need no such limit.
    """
    if tf.config.list_physical_devices("GPU"):
        yield
        return
    with free_memory.limited():
        yield


def is_exhausted(error: tf.errors.OpError) -> bool:
    """Returns whether an error says that memory did not suffice; oneDNN says so by its status 1."""
    return isinstance(error, tf.errors.ResourceExhaustedError) or (
        isinstance(error, tf.errors.AbortedError) and "exception:Status: 1," in error.message
    )
