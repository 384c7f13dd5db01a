"""TensorBoard's Custom Scalars tab: one page that says whether a run is healthy."""

import tensorflow.compat.v1 as tf1
from tensorboard.plugins.custom_scalar import layout_pb2, summary

from trainer.telemetry import tags


def build_layout() -> tf1.Summary:
    """Returns the page, the same for every run: the charts that the tables of tags name."""
    charts = [
        layout_pb2.Chart(
            title=chart.value,
            multiline=layout_pb2.MultilineChartContent(
                tag=[f"^{name}$" for name in tags.list_names(chart)]
            ),
        )
        for chart in tags.Chart
    ]
    return summary.pb(
        layout_pb2.Layout(category=[layout_pb2.Category(title="slim-horovod", chart=charts)])
    )
