"""Files that a run leaves for programs: --result_json and model.json."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.distributed import Worker
from trainer.errors import UserError
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
        _write("result_json", config.run.result_json, content)
    print(text, flush=True)


def _write(flag: str, path: str | Path, content: dict[str, Any]) -> None:
    """Writes a file of JSON.

    Raises:
      UserError: it can't be written; the message names the flag that it belongs to.
    """
    try:
        files.write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--{flag}: {path} could not be written ({error.strerror})") from error


def write_model(config: Config, worker: Worker, names: Sequence[str] | None) -> None:
    """Writes `<logdir>/model.json`: what a checkpoint does not say of its network and its input.

    Args:
      config: configuration of the run.
      worker: this worker; only rank 0 writes.
      names: names of the classes; None where they are not known.

    Raises:
      UserError: the file can't be written.
    """
    if config.run.logdir is None or worker.rank != 0:
        return
    fields = {flag.name: flag.value for flag in config.flags() if flag.statement.belongs_to_model}
    content = {"class_names": names and list(names), **fields}
    _write("logdir", Path(config.run.logdir) / _MODEL, content)


def _read_model(config: Config) -> dict[str, Any]:
    """Returns what `write_model` has written; empty where there is no such file.

    Raises:
      UserError: the file can't be read, or holds something else.
    """
    if config.run.logdir is None:
        return {}
    path = Path(config.run.logdir) / _MODEL
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(path, str(error))) from error
    if not isinstance(model, dict):
        raise UserError(_unreadable(path, "not an object"))
    return model


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"--logdir: {path} cannot be read ({reason}). Remove it, and give the network's flags "
        "(--model, --image_size, ...) on the command line"
    )


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
            try:
                changed = dataclasses.replace(group, **{flag.name: recorded[flag.name]})
            except TypeError as error:
                reason = f"{flag.name} is {recorded[flag.name]!r}"
                path = Path(str(config.run.logdir)) / _MODEL
                raise UserError(_unreadable(path, reason)) from error
            config = dataclasses.replace(config, **{flag.group: changed})
    return config


def class_names(config: Config, num_classes: int) -> list[str]:
    """Returns the names of the classes of the run in --logdir; a number where there is no name."""
    return name_classes(_read_model(config).get("class_names"), num_classes)
