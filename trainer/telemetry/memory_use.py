"""How much memory this worker has used at most."""

import tensorflow as tf

from trainer.machine import memory
from trainer.telemetry import tags

_MIB = 2**20


class MemoryUse:
    """Peaks since the start of the process, MiB.

    Attributes:
      trouble: why the device is not asked, though there is one; None where all is well.
    """

    def __init__(self, local_rank: int) -> None:
        """Finds out whether this worker has a device whose memory can be asked for.

        Args:
          local_rank: of this worker on its host.
        """
        self._local_rank = local_rank
        self._has_device = False
        self.trouble: str | None = None
        try:
            self._has_device = memory.device_peak_bytes(local_rank) is not None
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            # The eager runtime can't share it with the session's: nothing to end a run for.
            reason = str(error).splitlines()[0]
            self.trouble = (
                f"{tags.PEAK_DEVICE_MIB} is not logged, since it can't be read ({reason})"
            )

    def resident_mib(self) -> float:
        """Of main memory."""
        return memory.resident_peak_bytes() / _MIB

    def device_mib(self) -> float | None:
        """Of the device, in TensorFlow's allocator; None where there is no device."""
        if not self._has_device:
            return None
        peak_bytes = memory.device_peak_bytes(self._local_rank)
        return None if peak_bytes is None else peak_bytes / _MIB
