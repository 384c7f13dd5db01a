"""An evaluation that is asked to stop, on one process that stands for several."""

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
from processes import trainer

from trainer import exit_status
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


def run_evaluation(group, **options):
    config = Config(**tiny.config_groups())
    with tf.Graph().as_default(), tf1.Session() as session:
        evaluation = build_evaluation_graph(config, Group(), open_dataset(config.data))
        session.run(tf1.global_variables_initializer())
        return evaluate(session, evaluation, group, **options)


def test_all_stop_when_one_is_asked():
    group = WithOther(asked_at=2)
    with pytest.raises(Interrupted):
        run_evaluation(group)
    assert group.questions == 2


@pytest.mark.slow
def test_slow_workers_are_asked_at_every_batch():
    """The other worker takes 2 s for a batch; of the 5 batches, the second is the first asked."""
    group = WithOther(asked_at=100)
    assert run_evaluation(group).count == tiny.VALIDATION_EXAMPLES
    assert group.questions == 4


@pytest.mark.slow
def test_the_end_of_each_batch_is_reported():
    """37 examples in batches of 8, to the watchdog of --mode=evaluate."""
    ended = []
    run_evaluation(Group(), after_batch=ended.append)
    assert ended == [1, 2, 3, 4, 5]


@pytest.mark.processes
def test_an_evaluation_that_hangs_is_ended(run):
    flags = [*tiny.FLAGS, f"--init_checkpoint={run}/model.ckpt-60", "--dataset=slow:dataset"]
    done = trainer("--mode=evaluate", "--watchdog_seconds=3", *flags, HANG_AT_EXAMPLE="20")
    assert done.returncode == exit_status.HUNG, done.stderr
    assert "(--watchdog_seconds) in step 3, after step 2" in done.stderr
