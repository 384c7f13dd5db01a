"""An evaluation that is asked to stop, on one process that stands for several."""

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny

from trainer.config import Config
from trainer.distributed import Group
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs.dataset import open_dataset
from trainer.run.evaluation import Interrupted, evaluate


class WithOther(Group):
    """A group in which another worker was asked to stop, after some questions."""

    def __init__(self, asked_at):
        super().__init__()
        self.asked_at = asked_at
        self.questions = 0

    def gather(self, value):
        if isinstance(value, bool):
            self.questions += 1
            return [value, self.questions >= self.asked_at]
        return [value, 2.0] if isinstance(value, float) else [value]


def run_evaluation(group):
    config = Config(**tiny.config_groups())
    with tf.Graph().as_default(), tf1.Session() as session:
        evaluation = build_evaluation_graph(config, Group(), open_dataset(config.data))
        session.run(tf1.global_variables_initializer())
        return evaluate(session, evaluation, group)


def test_all_stop_when_one_is_asked():
    group = WithOther(asked_at=2)
    with pytest.raises(Interrupted):
        run_evaluation(group)
    assert group.questions == 2


def test_slow_workers_are_asked_at_every_batch():
    """The other worker takes 2 s for a batch; of the 5 batches, the second is the first asked."""
    group = WithOther(asked_at=100)
    assert run_evaluation(group).count == tiny.VALIDATION_EXAMPLES
    assert group.questions == 4
