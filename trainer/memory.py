"""How much memory this process needs at most."""

import re
from pathlib import Path

import tensorflow as tf


def reset_peak() -> None:
    """Begins a new measurement of `peak_bytes`."""
    if tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    else:
        # Resets VmHWM: see proc(5), clear_refs.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Most bytes in use since `reset_peak`: TensorFlow's on a GPU, the resident set on a CPU."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0])


def available_bytes() -> int:
    """Main memory that programs can still get."""
    status = Path("/proc/meminfo").read_text(encoding="ascii")
    return 1024 * int(re.findall(r"^MemAvailable:\s*(\d+) kB$", status, re.MULTILINE)[0])
