"""Measurements of a network and of a link, as scale_model takes them."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shared import scale_model
from shared.run_logs import Curve
from shared.scale_model import Gradient, Line, Link, Work

import numpy as np

from trainer import timing
from trainer.errors import UserError


class Measured(NamedTuple):
    """An all-reduce as `--benchmark_passes=allreduce` has timed it.

    Attributes:
      workers: number of workers.
      cost: time of a buffer by its size.
      busy: processor time of it.
      gradients: those of the network.
    """

    workers: int
    cost: Line
    busy: Line
    gradients: tuple[Gradient, ...]

    def link(self) -> Link:
        """The link between two neighbours of a ring that takes as long (see `ring_sec`)."""
        steps = 2 * (self.workers - 1)
        slope = max(self.cost.sec_per_byte, 1e-15)
        return Link(self.cost.start_sec / steps, steps / self.workers / slope)


def read_allreduces(results: Sequence[Mapping[str, Any]]) -> Measured:
    """Reads the results of one all-reduce benchmark or more on the same workers.

    Args:
      results: `result` of each --result_json.

    Raises:
      UserError: a result is of something else, or of an older version.
    """
    try:
        passes = [result["passes"]["allreduce"] for result in results]
        first = passes[0]
        buffers = [row for each in passes for row in each["buffers"]]
        cost = _through(passes, buffers, lambda row: row["step_time_ms"]["p50"] / 1000)
        busy = _through(passes, buffers, lambda row: max(row["cpu_sec"], 1e-9))
        gradients = gradients_in([(each["shape"], each["ready"]) for each in first["order"]])
        return Measured(first["workers"], cost, busy, gradients)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            "all-reduce result: must be a --result_json of --benchmark_passes=allreduce of this "
            f"version ({error!r} is missing)"
        ) from error


def _through(
    gradients: Sequence[Mapping[str, Any]],
    buffers: Sequence[Mapping[str, Any]],
    seconds_of: Callable[[Mapping[str, Any]], float],
) -> Line:
    """Returns the line of single buffers, as steep as what was measured of all gradients asks for.

    What is fused is copied into a buffer and out of it; a single tensor is not. So the buffers tell
    the start, and the gradients, which are fused as in a step, the seconds per byte.
    """
    line = scale_model.fit_line([row["bytes"] for row in buffers], list(map(seconds_of, buffers)))
    fused_sec = statistics.mean(map(seconds_of, gradients))
    slope = (fused_sec - line.start_sec) / gradients[0]["bytes"]
    return Line(line.start_sec, max(line.sec_per_byte, slope))


def gradients_in(order: Iterable[tuple[Sequence[int], float]]) -> tuple[Gradient, ...]:
    """Returns gradients by their shapes and the shares of the pass after which they are ready."""
    return tuple(Gradient(4.0 * math.prod(shape), ready) for shape, ready in order)


# Those of the curves that `read_alone` takes.
TAGS = ("perf/step_time_ms", "perf/slowest_worker_step_ms")


def read_alone(runs: Sequence[Mapping[str, Curve]], gradients: Sequence[Gradient]) -> Work:
    """Returns the work of a step from training without other workers.

    Args:
      runs: curves of runs by tag, `TAGS` among them: of one, or of several that ran at the same
        time.
      gradients: those of the network.
    """
    own_ms, rest_ms = [], []
    for curves in runs:
        steps_ms = curves["perf/step_time_ms"].values
        timed = slice(timing.warmup_steps(len(steps_ms)), None)
        own = curves["perf/slowest_worker_step_ms"].values
        own_ms.append(own[timed])
        rest_ms.append((steps_ms - own)[timed])
    samples = np.concatenate(own_ms) / 1000
    return Work(
        gradients=tuple(gradients),
        compute_sec=float(samples.mean()),
        update_sec=float(np.concatenate(rest_ms).mean()) / 1000,
        samples_sec=tuple(samples),
    )
