"""model.json of an exported network: what it is, what it takes, and what is known of it.

It has all that a run's model.json has (`checkpoints.model_file`), and more.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoints import layout, manifest, model_file, search
from trainer.config import Config
from trainer.machine import environment
from trainer.process import files, installed
from trainer.telemetry import tags
from trainer.telemetry.writers import metrics_lines

_OF_AVERAGES = {"top1": tags.EVAL_EMA_TOP1, "loss": tags.EVAL_EMA_LOSS}
_EVALUATED = {"top1": tags.EVAL_TOP1, "top5": tags.EVAL_TOP5, "loss": tags.EVAL_LOSS}


def write(
    folder: Path,
    config: Config,
    prefix: str,
    names: Sequence[str],
    facts: dict[str, Any],
    is_as_evaluated: bool,
) -> None:
    """Writes the file into an exported network's folder.

    Args:
      folder: the folder.
      config: configuration with the network's own flags.
      prefix: the prefix of the checkpoint.
      names: the names of all classes.
      facts: what is known of the export itself.
      is_as_evaluated: whether the run's evaluations prepared images in the same way, so that their
        accuracy is that of the exported network.

    Raises:
      OSError: it can't be written.
    """
    flags = {flag.name: flag.value for flag in model_file.list_flags(config)}
    described = environment.describe()
    checkpoint = _describe(prefix, averages=config.fine_tuning.init_averages)
    if not is_as_evaluated:
        checkpoint["evaluation"] = None
    content = {
        "class_names": list(names),
        "num_classes": len(names),
        **flags,
        "checkpoint": checkpoint,
        "export": {
            "date": described.date,
            **facts,
        },
        "versions": {
            "slim-horovod": installed.find_version("slim-horovod"),
            **described.versions,
        },
    }
    files.write_text(folder / layout.MODEL, json.dumps(content, indent=2) + "\n")


def _describe(prefix: str, *, averages: bool) -> dict[str, Any]:
    """Returns the checkpoint's name, run, step and, where it was evaluated, accuracy.

    Args:
      prefix: prefix of the checkpoint.
      averages: whether the averages of its weights are meant.
    """
    path = Path(prefix).absolute()
    step = search.step_of(prefix)
    is_best = path.parent.name == layout.BEST
    entry = manifest.read(path.parent).find(step)
    run = path.parent.parent if is_best else path.parent
    accuracy = _find_evaluation(
        run / metrics_lines.NAME, step, _OF_AVERAGES if averages else _EVALUATED
    )
    if not averages and not accuracy and entry is not None and entry.top1 is not None:
        accuracy = {"top1": entry.top1}
    return {
        "name": path.name,
        "run": run.name,
        "step": step,
        "epoch": None if entry is None else entry.epoch,
        "saved_at": None if entry is None else entry.saved_at,
        "averaged_weights": averages,
        "evaluation": accuracy or None,
        "workers": None if entry is None else entry.run.workers,
        "versions": None if entry is None else dict(entry.run.versions),
    }


def _find_evaluation(path: Path, step: int, wanted: dict[str, str]) -> dict[str, Any]:
    """Returns the numbers of the last evaluation after a step; none where there was none.

    Args:
      path: the run's metrics.
      step: the step.
      wanted: tags by the names of the numbers, that of the top-1 among them.
    """
    found: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if f'"{wanted["top1"]}"' not in line:
                    continue
                fields = metrics_lines.parse_line(line)
                if fields.get("step") == step:
                    found = {name: fields[tag] for name, tag in wanted.items() if tag in fields}
    except OSError:  # There is none, as where a checkpoint was copied.
        return {}
    return found
