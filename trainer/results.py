"""What a run leaves for programs: --result_json and status.json."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import atomic_file, environment
from trainer.config import Config
from trainer.distributed import Worker

_CLASSES = "classes.json"


def check_places(config: Config, worker: Worker) -> None:
    """Finds out before a run whether what it leaves can be written; on rank 0, which writes.

    Raises:
      UserError: it can't.
    """
    if worker.rank != 0:
        return
    if config.run.logdir is not None:
        atomic_file.check_writable(config.run.logdir, "logdir", is_folder=True)
    if config.run.result_json is not None:
        atomic_file.check_writable(config.run.result_json, "result_json", is_folder=False)


def report(config: Config, worker: Worker, result: dict[str, Any], *, text: str) -> None:
    """Prints `text` and writes --result_json, where it is asked for; from rank 0 alone."""
    if worker.rank != 0:
        return
    print(text, flush=True)
    if config.run.result_json is None:
        return
    content = {
        "mode": config.mode,
        "config": dataclasses.asdict(config),
        "environment": dataclasses.asdict(
            environment.describe(worker.local_rank, worker.local_size)
        ),
        "result": result,
    }
    atomic_file.write_text(config.run.result_json, json.dumps(content, indent=2) + "\n")


def write_class_names(logdir: str | None, worker: Worker, names: Sequence[str] | None) -> None:
    """Writes `<logdir>/classes.json`, by which predictions name classes; from rank 0 alone."""
    if logdir is not None and names is not None and worker.rank == 0:
        atomic_file.write_text(Path(logdir) / _CLASSES, json.dumps(list(names)) + "\n")


def read_class_names(logdir: str | None) -> list[str] | None:
    """The names of the classes that a run in `logdir` was trained on, if it knew them."""
    if logdir is None or not (Path(logdir) / _CLASSES).exists():
        return None
    return json.loads((Path(logdir) / _CLASSES).read_text(encoding="utf-8"))


class Status:
    """`<logdir>/status.json`: {"state": ..., "step": ..., "reason": ...}; from rank 0 alone."""

    def __init__(self, logdir: str | None, worker: Worker) -> None:
        self._path = Path(logdir) / "status.json" if logdir and worker.rank == 0 else None

    def set(self, state: str, *, step: int, reason: str | None = None) -> None:
        """Replaces the status.

        Args:
          state: running, finished, preempted or failed.
          step: updates made.
          reason: of the state, one line.
        """
        if self._path is not None:
            status = {"state": state, "step": step, "reason": reason}
            atomic_file.write_text(self._path, json.dumps(status) + "\n")
