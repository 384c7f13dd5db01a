"""TensorBoard's Custom Scalars tab: one page that says whether a run is healthy."""

import tensorflow.compat.v1 as tf1
from tensorboard.plugins.custom_scalar import layout_pb2, summary

# Title of each chart, and the tags in it.
_CHARTS = (
    ("images per second, over all workers", ("perf/images_per_sec",)),
    (
        "time of a step, and each worker's own part of it, ms",
        (
            "perf/step_time_ms",
            "perf/slowest_worker_step_ms",
            "perf/fastest_worker_step_ms",
        ),
    ),
    (
        "where the time goes, ms",
        (
            "perf/data_wait_ms",
            "perf/compute_ms",
            "perf/wait_for_slowest_ms",
            "perf/allreduce_and_update_ms",
        ),
    ),
    ("waiting for data, ms", ("perf/data_wait_ms",)),
    ("loss", ("train/loss", "train/cross_entropy", "eval/loss")),
    ("learning rate", ("train/learning_rate",)),
    ("accuracy", ("train/top1", "eval/top1", "eval/top5")),
    (
        "training and its benchmark, ms per step",
        ("perf/step_time_ms", "benchmark/train_step/step_time_ms"),
    ),
)


def build_layout() -> tf1.Summary:
    """The page, the same for every run."""
    charts = [
        layout_pb2.Chart(
            title=title,
            multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]),
        )
        for title, tags in _CHARTS
    ]
    return summary.pb(
        layout_pb2.Layout(category=[layout_pb2.Category(title="slim-horovod", chart=charts)])
    )
