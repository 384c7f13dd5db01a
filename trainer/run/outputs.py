"""Files that a run leaves for programs: --result_json and model.json."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.distributed import Worker
from trainer.inputs.dataset import name_classes
from trainer.machine import environment
from trainer.process import files

_MODEL = "model.json"


def check_places(config: Config, worker: Worker) -> None:
    """Finds out before a run whether its files can be written; on rank 0, which writes them.

    Raises:
      UserError: one of them can't.
    """
    if worker.rank != 0:
        return
    if config.run.logdir is not None:
        files.check_writable(config.run.logdir, "logdir", is_folder=True)
    if config.run.result_json is not None:
        files.check_writable(config.run.result_json, "result_json", is_folder=False)
        files.sweep_beside(config.run.result_json)


def report(config: Config, worker: Worker, result: dict[str, Any], *, text: str) -> None:
    """Writes --result_json, where it is given, and prints `text`; on rank 0 alone.

    Numbers in `result` that are not finite become null.
    """
    if worker.rank != 0:
        return
    if config.run.result_json is not None:
        content = {
            "mode": config.mode,
            "config": dataclasses.asdict(config),
            "environment": dataclasses.asdict(
                environment.describe(worker.local_rank, worker.local_size)
            ),
            "result": result,
        }
        # JSON has no NaN and no Infinity, which a run that has diverged has among its results.
        content = json.loads(json.dumps(content), parse_constant=lambda _: None)
        files.write_text(config.run.result_json, json.dumps(content, indent=2) + "\n")
    print(text, flush=True)


def write_model(config: Config, worker: Worker, names: Sequence[str] | None) -> None:
    """Writes `<logdir>/model.json`: what a checkpoint does not say of its network and its input.

    Args:
      config: configuration of the run.
      worker: this worker; only rank 0 writes.
      names: names of the classes; None where they are not known.
    """
    if config.run.logdir is None or worker.rank != 0:
        return
    fields = {flag.name: flag.value for flag in config.flags() if flag.statement.belongs_to_model}
    text = json.dumps({"class_names": names and list(names), **fields}, indent=2)
    files.write_text(Path(config.run.logdir) / _MODEL, text + "\n")


def _read_model(config: Config) -> dict[str, Any]:
    logdir = config.run.logdir
    if logdir is None or not (Path(logdir) / _MODEL).exists():
        return {}
    return json.loads((Path(logdir) / _MODEL).read_text(encoding="utf-8"))


def as_trained(config: Config) -> Config:
    """Returns the configuration for using a trained network.

    A flag that belongs to the network has the value that it had in the run in --logdir, unless the
    command line gives it: a network that was trained on digits of 32 pixels must not get them at
    224.
    """
    recorded = _read_model(config)
    for flag in config.flags():
        is_meant = flag.statement.belongs_to_model and flag.name not in config.given
        if is_meant and flag.name in recorded:
            group = getattr(config, flag.group)
            changed = dataclasses.replace(group, **{flag.name: recorded[flag.name]})
            config = dataclasses.replace(config, **{flag.group: changed})
    return config


def class_names(config: Config, num_classes: int) -> list[str]:
    """Returns the names of the classes of the run in --logdir; a number where there is no name."""
    return name_classes(_read_model(config).get("class_names"), num_classes)
