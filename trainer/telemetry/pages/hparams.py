"""TensorBoard's HParams tab, which compares runs by their flags and final figures."""

from typing import Any

import tensorflow.compat.v1 as tf1
from tensorboard.plugins.hparams import api_pb2, summary

from trainer.config import Config
from trainer.plan import Plan
from trainer.telemetry import tags

_METRICS = (
    (tags.EVAL_TOP1, "top-1"),
    (tags.EVAL_TOP5, "top-5"),
    (tags.EVAL_LOSS, "evaluation loss"),
    ("train/loss", "training loss"),
    (tags.MEAN_IMAGES_PER_SEC, "images/s"),
)
# What people compare runs by. TensorBoard 2.21 sorts columns by name, whatever their order here,
# but for those that are said to differ between runs: these come first.
_FIRST = frozenset({"base_learning_rate", "epochs", "optimizer", "workers"})
_TYPES = {
    bool: api_pb2.DATA_TYPE_BOOL,
    int: api_pb2.DATA_TYPE_FLOAT64,
    float: api_pb2.DATA_TYPE_FLOAT64,
    str: api_pb2.DATA_TYPE_STRING,
}


def list_hparams(config: Config, plan: Plan, *, workers: int) -> dict[str, Any]:
    """Returns the values by which runs are compared: of flags, and what follows from them."""
    stated = {flag.name: flag.value for flag in config.flags() if flag.statement.is_hparam}
    # TensorBoard has no value for a flag that is not given: its cell stays empty.
    values = {name: value for name, value in stated.items() if value is not None}
    return values | {
        "epochs": round(plan.epoch_at(plan.total_steps), 4),
        "workers": workers,
        "global_batch_size": plan.global_batch_size,
        "total_steps": plan.total_steps,
    }


def build_start(hparams: dict[str, Any], *, num_classes: int) -> list[tf1.Summary]:
    """Returns what the tab needs at the start of a run.

    Args:
      hparams: result of `list_hparams`.
      num_classes: number of classes, which tells whether the top-5 says something.
    """
    infos = [
        api_pb2.HParamInfo(name=name, type=_TYPES[type(value)], differs=name in _FIRST)
        for name, value in hparams.items()
    ]
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
        for tag, name in _METRICS
        if tag != tags.EVAL_TOP5 or tags.tells_top5(num_classes)
    ]
    return [summary.experiment_pb(infos, metrics), summary.session_start_pb(hparams)]


def build_end() -> tf1.Summary:
    """Returns the summary that says that the run is complete."""
    return summary.session_end_pb(api_pb2.STATUS_SUCCESS)
