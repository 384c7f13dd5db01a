"""Times, before the first step of a run over several hosts, the averaging of its gradients."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import Config
from trainer.distributed import URGENT, Group
from trainer.graph import reduction
from trainer.machine import session
from trainer.run.setup import Setup
from trainer.telemetry.console import Console

# It is repeated for about so long, where it is short: a single one may be one that was held up.
_REPEATED_SEC = 1.0
_MOST_RUNS = 9


class FirstAllreduce(NamedTuple):
    """The averaging of tensors of the gradients' shapes, with nothing else to do.

    Attributes:
      size_bytes: bytes that each worker gives.
      duration_sec: time that it took, of the slowest worker; the median of some.
    """

    size_bytes: int
    duration_sec: float

    def describe(self) -> str:
        """Returns the line before the first step."""
        return (
            f"over several hosts: averaging the {self.size_bytes / 1e6:.3g} MB of gradients alone "
            f"takes {1000 * self.duration_sec:.1f} ms here, at each step; what the backward pass "
            "does not hide of it is added to the step's time (docs/hosts.md: what makes it shorter)"
        )


def measure(config: Config, group: Group, setup: Setup, console: Console) -> FirstAllreduce | None:
    """Times the all-reduce of a step's gradients, and tells it. A collective.

    Before the one that counts, another lets Horovod agree on the tensors' names; where it takes
    long, there is one alone.

    Args:
      config: configuration of the run.
      group: the workers.
      setup: what is built for the run.
      console: gets the line.

    Returns:
      what was measured; None where all workers are on one host.
    """
    worker = group.worker
    if worker.local_size == worker.size:
        return None
    all_shapes = {variable.op.name: variable.shape for variable in setup.variables}
    shapes = [all_shapes[name] for name in setup.train.gradient_names]
    compression = config.communication.gradient_compression
    sent_type = tf.float32 if compression == "none" else tf.as_dtype(compression)
    session_config = session.create_config(
        local_rank=worker.local_rank, local_size=worker.local_size
    )
    with tf.Graph().as_default(), tf1.Session(config=session_config) as own_session:
        # It is fed, since TensorFlow would average constants once, before the first run.
        value = tf1.placeholder(tf.float32, [])
        sent = [tf.fill(shape, value) for shape in shapes]
        names = [f"start/{i}" for i in range(len(sent))]
        # As a step does it: Horovod alone knows neither bfloat16 nor this Adasum.
        averages = reduction.reduce_gradients(config, group, sent, names)
        with tf.control_dependencies(sent):  # A step ends with an urgent tensor, too.
            averages.append(group.average(tf.reshape(value, [1]), f"{URGENT}start/end"))
        fetch = tf.add_n([tf.reshape(average, [-1])[0] for average in averages])
        run = own_session.make_callable(fetch, [value])
        run(1.0)
        first_sec = _time(group, run)
        more = min(_MOST_RUNS - 1, int(_REPEATED_SEC / first_sec))
        durations = [first_sec, *(_time(group, run) for _ in range(more))]
    elements = sum(shape.num_elements() for shape in shapes)
    found = FirstAllreduce(elements * sent_type.size, statistics.median(durations))
    console.say(found.describe())
    return found


def _time(group: Group, run: Callable[[float], object]) -> float:
    """Returns the seconds that a collective takes, of the slowest worker: the same on all."""
    group.gather(None)  # All workers begin together.
    began_sec = time.monotonic()
    run(1.0)
    return max(group.gather(time.monotonic() - began_sec))
