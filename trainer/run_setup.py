"""What a run has built before its first step."""

from typing import NamedTuple

import tensorflow.compat.v1 as tf1

from trainer import checkpoint_store, graph, nonfinite, plan
from trainer.inputs.dataset import DatasetInfo


class Setup(NamedTuple):
    """Everything that the loop needs, built before its first collective."""

    info: DatasetInfo
    plan: plan.Plan
    train: graph.TrainGraph
    evaluation: graph.EvaluationGraph | None
    store: checkpoint_store.Store
    policy: nonfinite.Policy
    session: tf1.Session
