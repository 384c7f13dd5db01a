"""The most memory that this worker has used."""

import tensorflow as tf

from trainer.machine import memory
from trainer.telemetry import tags

_MIB = 2**20


class MemoryUse:
    """Reads the peaks of memory use since the start of the process, MiB.

    Attributes:
      trouble: message that says why the device's peak can't be read; None where it can, and where
        there is no device.
    """

    def __init__(self, local_rank: int) -> None:
        """Finds out whether this worker has a device whose peak can be read.

        Args:
          local_rank: rank of this worker on its host.
        """
        self._local_rank = local_rank
        self._has_device = False
        self.trouble: str | None = None
        try:
            self._has_device = memory.device_peak_bytes(local_rank) is not None
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            # The eager runtime can't share the device with the session's: no reason to end a run.
            reason = str(error).splitlines()[0]
            self.trouble = (
                f"{tags.PEAK_DEVICE_MIB} is not logged, since it can't be read ({reason})"
            )

    def resident_mib(self) -> float:
        """Returns the peak of main memory."""
        return memory.resident_peak_bytes() / _MIB

    def device_mib(self) -> float | None:
        """Returns the peak of TensorFlow's allocator on the device; None without a device."""
        if not self._has_device:
            return None
        peak_bytes = memory.device_peak_bytes(self._local_rank)
        return None if peak_bytes is None else peak_bytes / _MIB
