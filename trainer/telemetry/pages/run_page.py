"""A run's pages of TensorBoard: HParams, charts, texts and the graph."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1
from tensorboard.plugins.text import summary as text_summary

from trainer.config import Config
from trainer.distributed import Worker
from trainer.graph import losses
from trainer.inputs.dataset import DatasetInfo
from trainer.machine import environment
from trainer.plan import Plan
from trainer.process import texts
from trainer.telemetry import tags
from trainer.telemetry.pages import custom_scalars, hparams
from trainer.telemetry.writers.protocol import Writer

_MAX_CLASSES = 1000


def write_run_page(
    writer: Writer,
    config: Config,
    worker: Worker,
    plan: Plan,
    info: DatasetInfo,
    *,
    done: int,
    graph: tf.Graph,
) -> None:
    """Writes the pages that are known before the first step.

    Args:
      writer: writer of the run.
      config: configuration of the run.
      worker: this worker.
      plan: plan of the run.
      info: description of the data set.
      done: number of steps done before; the pages belong to that step, which no restart drops.
      graph: finalized graph. A run that goes on does not write it again.
    """
    here = environment.describe(worker.local_rank, worker.local_size)
    values = hparams.list_hparams(config, plan, workers=worker.size)
    has_norms = config.telemetry.histogram_every > 0
    pages = {
        "configuration": _describe_config(config),
        "environment": _as_table(_flatten(dataclasses.asdict(here))),
        "command line": " ".join(_as_code(shlex.quote(part)) for part in sys.orig_argv),
        "classes": _describe_classes(info),
    }
    summaries = [
        *hparams.build_start(values, num_classes=info.num_classes),
        custom_scalars.build_layout(_list_kernels(graph) if has_norms else ()),
        *(text_summary.pb(title, text) for title, text in pages.items()),
    ]
    for summary in summaries:
        writer.write_summary(done, summary, wall_time=time.time())
    if not done:
        writer.write_graph(graph)


def write_end(writer: Writer, step: int, result: Mapping[str, Any]) -> None:
    """Writes the final figures of a complete run, for the HParams tab."""
    if "images_per_sec" in result:
        rate = {tags.MEAN_IMAGES_PER_SEC: result["images_per_sec"]}
        writer.write(step, rate, wall_time=time.time())
    writer.write_summary(step, hparams.build_end(), wall_time=time.time())


def _describe_config(config: Config) -> str:
    """Lists every flag and its value; flags of the command line in bold."""
    rows = {}
    for name, group in dataclasses.asdict(config).items():
        if not isinstance(group, dict):
            continue
        for flag, value in group.items():
            title = f"**--{flag}**" if flag in config.given else f"--{flag}"
            rows[f"{name} | {title}"] = value
    return _as_table(rows, header="group | flag | value\n--- | --- | ---")


def _list_kernels(graph: tf.Graph) -> list[str]:
    """Returns the names of the trained kernels, in the order of the network."""
    variables = graph.get_collection(tf1.GraphKeys.TRAINABLE_VARIABLES)
    return [each.op.name for each in variables if losses.is_kernel(each)]


def _describe_classes(info: DatasetInfo) -> str:
    """Lists the classes with the number of their examples."""
    counts = info.counts or [("", "")] * info.num_classes
    shown = list(enumerate(zip(info.names_of_classes, counts, strict=True)))[:_MAX_CLASSES]
    rows = (
        f"{label} | {_as_code(name)} | {training} | {validation}"
        for label, (name, (training, validation)) in shown
    )
    more = info.num_classes - len(shown)
    return "\n".join(
        [
            "label | class | training examples | validation examples",
            "--- | --- | --- | ---",
            *rows,
            *([f"... | {more} more | | "] if more else []),
        ]
    )


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an environment, with a field for each of its versions."""
    versions = {f"{name} version": version for name, version in values["versions"].items()}
    return {name: value for name, value in values.items() if name != "versions"} | versions


def _as_table(rows: Mapping[str, Any], header: str = "name | value\n--- | ---") -> str:
    """Formats a table in Markdown."""
    lines = (f"{name} | {_as_code(value)}" for name, value in rows.items())
    return "\n".join([header, *lines])


def _as_code(value: object) -> str:
    """Formats a value as Markdown's code, of which a table does not take a vertical bar."""
    text = texts.printable(str(value)).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
