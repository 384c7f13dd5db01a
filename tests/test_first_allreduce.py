"""The all-reduce that is timed before the first step, with workers that are not there."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import CommunicationConfig, Config
from trainer.distributed import Group, Worker
from trainer.run import first_allreduce


class TwoHosts(Group):
    """A worker on each of two hosts; the other one sends the same as this one."""

    def __init__(self):
        super().__init__(Worker(size=2))
        self.sent = []

    def average(self, tensor, name):
        self.sent.append(tensor.dtype)
        return super().average(tensor, name)

    def all_to_all(self, rows, name):
        self.sent.append(rows.dtype)
        return tf.stack([rows[0], rows[0]])

    def all_gather(self, tensor, name):
        self.sent.append(tensor.dtype)
        return tf.stack([tensor, tensor])


@pytest.mark.parametrize(
    ("compression", "reduction", "sent", "size_bytes"),
    [
        ("none", "average", {tf.float32}, 80),
        ("float16", "average", {tf.float16, tf.float32}, 40),
        # Horovod knows no bfloat16: two travel as an int32.
        ("bfloat16", "average", {tf.int32, tf.float32}, 40),
        ("bfloat16", "adasum", {tf.int32, tf.float32}, 40),
    ],
)
def test_it_sends_what_a_step_sends(compression, reduction, sent, size_bytes):
    with tf.Graph().as_default():
        variables = (tf1.get_variable("a", [5, 3]), tf1.get_variable("b", [5]))
    setup = SimpleNamespace(variables=variables, train=SimpleNamespace(gradient_names=("a", "b")))
    config = Config(
        communication=CommunicationConfig(
            gradient_compression=compression, gradient_reduction=reduction
        )
    )
    lines, group = [], TwoHosts()
    found = first_allreduce.measure(config, group, setup, SimpleNamespace(say=lines.append))
    assert set(group.sent) == sent
    assert found.size_bytes == size_bytes
    assert lines == [found.describe()]
