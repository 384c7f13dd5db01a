"""Name scopes of a graph's parts: the boxes that TensorBoard's tab Graphs shows first.

The slash lets several calls put operations into the same scope. Variables that are not made by
`get_variable` take a name scope into their own names, which stay: so they are built outside. Those
that an update rule keeps for itself, such as Adam's powers, would each be a box of their own: the
tab shows them within the update.
"""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1

INPUTS = "inputs/"
LOSSES = "losses/"
GRADIENTS = "gradients/"
RECOMPUTED = "gradients/recomputed/"
UPDATE = "update/"
CHECKS = "update/checks/"
HISTOGRAMS = "update/histograms/"
STATISTICS = "update/moving_statistics/"
START = "start/"
EVALUATION = "evaluation/"

_SHOWN_IN_UPDATE = "boxes_shown_in_update"  # A collection of names.


def show_in_update(boxes: Iterable[str]) -> None:
    """Makes `define_as_shown` put boxes of the default graph into that of the update."""
    for box in boxes:
        tf1.add_to_collection(_SHOWN_IN_UPDATE, box)


def define_as_shown(graph: tf.Graph) -> tf1.GraphDef:
    """Returns the definition of a graph, with other names where the tab is to show other boxes."""
    moved = frozenset(graph.get_collection(_SHOWN_IN_UPDATE))

    def shown(name: str) -> str:
        bare = name.removeprefix("^")
        if bare.partition(":")[0].partition("/")[0] not in moved:
            return name
        return f"{name[: len(name) - len(bare)]}{UPDATE}{bare}"

    definition: Any = graph.as_graph_def(add_shapes=True)
    for node in definition.node if moved else ():
        node.name = shown(node.name)
        node.input[:] = [shown(name) for name in node.input]
    return definition
