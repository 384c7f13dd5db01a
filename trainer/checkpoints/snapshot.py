"""Copies a run's variables, so that training goes on while the copy is written to disk."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.machine import free_memory
from trainer.machine import session as machine_session

# Of the memory that is available, a copy may take one in so many parts: steps may need more, too.
_PARTS = 2


class Shortage(Exception):
    """Memory does not suffice for a copy of the variables; the message is a clause that says so."""


class Copied(NamedTuple):
    """A checkpoint that is copied, and not on disk yet.

    Attributes:
      bytes: memory that the copy takes until it is saved.
      save: function that saves it: in any thread, once.
    """

    bytes: int
    save: Callable[[], None]


class Snapshot:
    """Copies of variables, as they are between two steps.

    TensorFlow copies a variable that is fetched into memory of NumPy's, by one thread. Here an
    operation copies, by all threads of the session, and what it returns is fetched as it is. Its
    memory is aligned as TensorFlow wants what it is fed: it is written without another copy.

    Attributes:
      bytes: memory that a copy of all variables takes.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        """Adds operations to the default graph, of which the variables are."""
        graph = tf1.get_default_graph()
        self.bytes = sum(v.shape.num_elements() * v.dtype.size for v in variables)
        self._values = [graph.as_graph_element(variable) for variable in variables]
        self._session: tf1.Session | None = None
        if machine_session.step_device() == "/cpu:0":  # From a GPU, fetching copies by itself.
            with tf.name_scope("save/"):
                self._values = [tf.raw_ops.DeepCopy(x=value) for value in self._values]

    def prepare(self, session: tf1.Session) -> None:
        """Makes the session prepare the first copy, which takes longer than a copy does."""
        if session is not self._session:
            self._run = machine_session.prepare(session, self._values)
            self._session = session

    def take(self, session: tf1.Session) -> list[npt.NDArray[Any]]:
        """Returns the values of all variables, in their order, which later steps don't change.

        Raises:
          Shortage: memory does not suffice.
        """
        available = free_memory.available_bytes()
        if _PARTS * self.bytes > available:
            raise Shortage(self._describe(f"of {available / 1e6:.0f} MB that are available"))
        try:
            self.prepare(session)
            return self._run()
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise Shortage(self._describe("within this process's limits")) from error

    def _describe(self, where: str) -> str:
        size = f"{self.bytes / 1e6:.0f} MB"
        return f"memory does not suffice for a copy of the variables, {size} {where}"
