"""Name scopes of a graph's parts: the boxes that TensorBoard's tab Graphs shows first.

The slash lets several calls put operations into the same scope. Variables that are not made by
`get_variable` take a name scope into their own names, which stay: so they are built outside.
"""

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
