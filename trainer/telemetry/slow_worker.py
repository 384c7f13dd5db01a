"""Finds a worker that the others wait for."""

import collections
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# A slow worker is behind by this share, and by this much, in medians of this many steps.
_SHARE = 0.2
_LEAST_SEC = 0.002
_STEPS = 20
# A worker stays slow until it is behind by less than this share of the limit: noise around the
# limit would be reported again and again.
_RECOVERED_SHARE = 0.5


class Lag(NamedTuple):
    """The times of a slow worker beside those of the others; medians over some steps, in seconds.

    Attributes:
      rank: rank of the slow worker.
      own_sec: part of a step before it waits for the others.
      data_wait_sec: part of `own_sec` in which it waits for its input.
      others_sec: median of the other workers' `own_sec`.
    """

    rank: int
    own_sec: float
    data_wait_sec: float
    others_sec: float


def find_lag(
    own_sec: Sequence[float], data_wait_sec: Sequence[float], *, named: int | None = None
) -> Lag | None:
    """Returns the slowest worker's lag, where it is far behind the others.

    Args:
      own_sec, data_wait_sec: times of each worker, in order of rank; see `Lag`.
      named: rank of the worker that was slow before.
    """
    if len(own_sec) < 2:
        return None
    rank = max(range(len(own_sec)), key=own_sec.__getitem__)
    others_sec = statistics.median([*own_sec[:rank], *own_sec[rank + 1 :]])
    behind_sec = own_sec[rank] - others_sec
    limit_sec = max(_LEAST_SEC, _SHARE * others_sec)
    if behind_sec < (_RECOVERED_SHARE if rank == named else 1.0) * limit_sec:
        return None
    return Lag(rank, own_sec[rank], data_wait_sec[rank], others_sec)


class SlowWorkerWatch:
    """Reports the slowest worker when it has been far behind for some time, once each time."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begins to watch; `names` are those of the workers, in order of rank."""
        self._names = names
        window = [collections.deque[float](maxlen=_STEPS) for _ in names]
        self._own_sec, self._data_wait_sec = window, [part.copy() for part in window]
        self._slow: int | None = None

    def add(
        self, own_sec: Sequence[Sequence[float]], data_wait_sec: Sequence[Sequence[float]]
    ) -> str | None:
        """Adds some steps.

        Args:
          own_sec, data_wait_sec: times of each worker, in order of rank, in each of the steps.

        Returns:
          a message in one line, where a worker has become slow or is slow no longer.
        """
        for window, times in zip(self._own_sec, own_sec, strict=True):
            window.extend(times)
        for window, times in zip(self._data_wait_sec, data_wait_sec, strict=True):
            window.extend(times)
        if len(self._own_sec[0]) < _STEPS:
            return None
        lag = find_lag(
            [statistics.median(window) for window in self._own_sec],
            [statistics.median(window) for window in self._data_wait_sec],
            named=self._slow,
        )
        before, self._slow = self._slow, lag.rank if lag is not None else None
        if self._slow == before:
            return None
        if lag is None:
            return f"{self._names[before or 0]} is no longer behind"
        return (
            f"{self._names[lag.rank]} is slow: {1000 * lag.own_sec:.1f} ms a step before it waits "
            f"for the others, {1000 * lag.data_wait_sec:.1f} ms of them for its input; the others "
            f"take {1000 * lag.others_sec:.1f} ms (medians of {_STEPS} steps)"
        )
