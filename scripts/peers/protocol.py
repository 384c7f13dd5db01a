"""The protocol of compare_peers.py's contestants: a line of JSON each way, by stdin and stdout."""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Case:
    """A computation that is to be timed.

    Attributes:
      task: `forward` (inference mode, logits) or `train` (a whole training step with its update).
      precision: `float32` or `bfloat16`, of activations and convolutions.
      batch_size: images per step.
      image_size: height and width, pixels.
    """

    task: str
    precision: str
    batch_size: int
    image_size: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A case that is ready to run.

    Attributes:
      step: function that runs one step and returns when it is complete.
      parameters: number of trained parameters.
      gflops_per_image: work of the step's convolutions and products, 2 per multiply-add.
    """

    step: Callable[[], object]
    parameters: int
    gflops_per_image: float


def serve(prepare: Callable[[Case], Prepared]) -> None:
    """Carries out the requests that come as lines of stdin, until they end.

    `{"prepare": {...a Case...}}` replaces what was prepared before, runs a step, and answers with
    its size; `{"run": n}` answers with the seconds of each of n steps, and with the most main
    memory that the process has had. An error is answered with its last line.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print is no answer.
    prepared = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object]
        try:
            if "prepare" in request:
                prepared = None  # Its memory is needed.
                began = time.perf_counter()
                prepared = prepare(Case(**request["prepare"]))
                prepared.step()
                answer = {
                    "parameters": prepared.parameters,
                    "gflops_per_image": prepared.gflops_per_image,
                    "prepare_sec": time.perf_counter() - began,
                }
            elif prepared is None:
                answer = {"error": "nothing is prepared"}
            else:
                answer = {
                    "durations_sec": _time(prepared.step, request["run"]),
                    "peak_memory_bytes": _peak_memory_bytes(),
                }
        except Exception as error:  # noqa: BLE001 (the others go on without this contestant)
            answer = {"error": (str(error).strip() or type(error).__name__).splitlines()[-1]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _peak_memory_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _time(step: Callable[[], object], steps: int) -> list[float]:
    step()  # Others ran in the meantime: caches and clocks are cold.
    durations_sec = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        durations_sec.append(time.perf_counter() - began)
    return durations_sec
