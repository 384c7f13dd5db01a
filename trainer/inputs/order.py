"""The order of training examples: a pure function of seed and epoch, which can start anywhere.

Workers take turns in one endless sequence of examples: one epoch's permutation after the other.
A worker's position in it follows from its step, so that a run which is resumed needs no record of
what was read, and reads nothing only to skip it.

With --repeated_augmentation=M each example of a permutation comes M times, one after the other. An
epoch has as many positions as there are examples, so that a permutation lasts for M epochs, in
which every example comes equally often. (timm leaves the rest of a permutation out after each
epoch, so that some examples come more often than others.)
"""

import functools
import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.distributed import Worker


class EpochOrder:
    """The permutations of the examples, one for every epoch, or for every so many `repeats`."""

    def __init__(self, num_examples: int, *, seed: int, block: int = 1, repeats: int = 1) -> None:
        """Stores what the permutations depend on; each is made when it is first needed.

        Args:
          num_examples: the number of examples in the split, at least 1.
          seed: the seed of the order.
          block: the number of neighbours that stay together, so that a disk or server is read in
            larger pieces.
          repeats: how often each example comes, one time after the other.
        """
        self._num_examples = num_examples
        self._seed = seed
        self._block = block
        self._repeats = repeats
        self._lock = threading.Lock()  # Otherwise several threads would make the same permutation.
        # Two, since a chunk of positions may lie in two epochs.
        self._permutation = functools.lru_cache(maxsize=2)(self._create_permutation)

    def _create_permutation(self, number: int) -> npt.NDArray[Any]:
        # A generator's raw bits are the same in every version of NumPy; what
        # `Generator.permutation` makes of them may change.
        generator = np.random.Philox(key=np.array([self._seed, number], np.uint64))
        num_blocks = math.ceil(self._num_examples / self._block)
        blocks = np.argsort(generator.random_raw(num_blocks), kind="stable")
        if self._block == 1:
            return blocks
        examples = (blocks[:, None] * self._block + np.arange(self._block)).ravel()
        return examples[examples < self._num_examples]

    def examples_at(self, positions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Returns at each position of the endless sequence the example, and which time it comes.

        Args:
          positions: positions, from 0: int64 [n].

        Returns:
          (times, examples), both int64 [n]. Each example comes for time 0, 1 and so on. Unless
          examples are repeated, a time is the number of the epoch.
        """
        draws, repeats = np.divmod(positions, self._repeats)
        numbers, places = np.divmod(draws, self._num_examples)
        examples = np.empty_like(places)
        for number in np.unique(numbers):
            chosen = numbers == number
            with self._lock:
                permutation = self._permutation(int(number))
            examples[chosen] = permutation[places[chosen]]
        return numbers * self._repeats + repeats, examples

    def next_position(self, position: int) -> int:
        """Returns the first position after `position` that has another example."""
        return position - position % self._repeats + self._repeats


def global_positions(local: npt.NDArray[Any], worker: Worker, batch_size: int) -> npt.NDArray[Any]:
    """Returns positions in the sequence that all workers share: int64 [n].

    Each step consumes size * batch_size positions, of which worker r gets the r-th batch_size.

    Args:
      local: positions in this worker's own sequence: int64 [n].
      worker: this worker.
      batch_size: the number of examples per worker and step.
    """
    steps, rows = np.divmod(local, batch_size)
    return (steps * worker.size + worker.rank) * batch_size + rows


def dealt_positions(local: npt.NDArray[Any], worker: Worker) -> npt.NDArray[Any]:
    """Returns positions in that sequence, of which workers get one at a time in turn: int64 [n].

    Each step consumes the same positions as in `global_positions`. But neighbours, which may be one
    example repeated, go to different workers, so that BN of each sees as many examples as can be.

    Args:
      local: positions in this worker's own sequence: int64 [n].
      worker: this worker.
    """
    return local * worker.size + worker.rank
