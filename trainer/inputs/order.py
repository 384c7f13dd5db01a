"""The order of training examples: a pure function of seed and epoch, open at any position.

Workers take turns in one endless sequence of examples, an epoch's permutation after the other's.
Where a worker is in it follows from its step, so nothing has to be remembered or skipped.
"""

import functools
import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.distributed import Worker


class EpochOrder:
    """A permutation of the examples for every epoch."""

    def __init__(self, num_examples: int, *, seed: int, block: int = 1) -> None:
        """Makes no permutation yet.

        Args:
          num_examples: in the split, at least 1.
          seed: of the order.
          block: neighbours that stay together, so that a disk or server is read in larger pieces.
        """
        self._num_examples = num_examples
        self._seed = seed
        self._block = block
        self._lock = threading.Lock()  # So that not every thread makes the same permutation.
        # The two epochs that a chunk of positions may touch.
        self._permutation = functools.lru_cache(maxsize=2)(self._create_permutation)

    def _create_permutation(self, epoch: int) -> npt.NDArray[Any]:
        # A generator's raw bits are the same in every NumPy; `Generator.permutation` promises less.
        generator = np.random.Philox(key=np.array([self._seed, epoch], np.uint64))
        num_blocks = math.ceil(self._num_examples / self._block)
        blocks = np.argsort(generator.random_raw(num_blocks), kind="stable")
        if self._block == 1:
            return blocks
        examples = (blocks[:, None] * self._block + np.arange(self._block)).ravel()
        return examples[examples < self._num_examples]

    def examples_at(self, positions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Epoch and example of each place in the endless sequence.

        Args:
          positions: int64 [n], from 0.

        Returns:
          (epochs, examples), both int64 [n].
        """
        epochs, places = np.divmod(positions, self._num_examples)
        examples = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            with self._lock:
                permutation = self._permutation(int(epoch))
            examples[chosen] = permutation[places[chosen]]
        return epochs, examples


def global_positions(local: npt.NDArray[Any], worker: Worker, batch_size: int) -> npt.NDArray[Any]:
    """Places in the sequence that all workers share.

    Step k takes size * batch_size places; within it worker r has the r-th run of batch_size.

    Args:
      local: int64 [n]: places in this worker's own sequence.
      worker: which one it is.
      batch_size: per worker.
    """
    steps, rows = np.divmod(local, batch_size)
    return (steps * worker.size + worker.rank) * batch_size + rows
