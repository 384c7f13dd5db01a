"""TensorBoard's Custom Scalars tab: one page that says whether a run is healthy."""

import re
from collections.abc import Iterable, Mapping, Sequence

import tensorflow.compat.v1 as tf1
from tensorboard.plugins.custom_scalar import layout_pb2, summary

from trainer.graph.summaries import GRADIENT_NORM, WEIGHT_NORM
from trainer.telemetry import tags


def build_layout(kernels: Sequence[str] = ()) -> tf1.Summary:
    """Returns the page: the charts that the tables of tags name, and those of norms.

    Of its parts the first has one line per run in each chart. The others are closed, since their
    charts would have too many lines where TensorBoard shows several runs.

    Args:
      kernels: names of the kernels whose norms the run writes; none where it writes none.
    """
    runs, details = (
        {c.value: tags.list_names(c) for c in tags.Chart if (c in tags.IN_DETAIL) == is_detailed}
        for is_detailed in (False, True)
    )
    categories = [
        _build_category("slim-horovod", runs),
        _build_category("one run in detail", details, closed=True),
    ]
    if kernels:
        charts = {
            f"{kind}, {part}": [f"{kind}/{name}" for name in names]
            for kind in (GRADIENT_NORM, WEIGHT_NORM)
            for part, names in _by_part(kernels).items()
        }
        categories.append(_build_category("norms of kernels", charts, closed=True))
    return summary.pb(layout_pb2.Layout(category=categories))


def _build_category(
    title: str, charts: Mapping[str, Iterable[str]], *, closed: bool = False
) -> layout_pb2.Category:
    """Returns a part of the page, whose charts have titles and show tags."""
    return layout_pb2.Category(
        title=title,
        closed=closed,
        chart=[
            layout_pb2.Chart(
                title=chart,
                multiline=layout_pb2.MultilineChartContent(
                    tag=[f"^{re.escape(name)}$" for name in names]
                ),
            )
            for chart, names in charts.items()
        ],
    )


def _by_part(variables: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names of variables by the part of the network, such as its second block."""
    parts: dict[str, list[str]] = {}
    for name in variables:
        parts.setdefault("/".join(name.split("/")[:2]), []).append(name)
    return parts
