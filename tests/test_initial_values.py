"""Initial values: those of TensorFlow's own initializer, without zeros that stay in memory."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig
from trainer.distributed import Group
from trainer.graph import initial_values, train_step
from trainer.graph.accumulation import Accumulator
from trainer.inputs.dataset import open_dataset
from trainer.machine import session

LARGE = 1024  # Elements: the filters of tiny:residual_network have 9,216.


def run_initially(build_initializer, optimizer):
    """Initial values of a training graph, and the sizes of constants in the graph that ran."""
    config = Config(
        model=ModelConfig(model="tiny:residual_network"),
        data=DataConfig(dataset="tiny:dataset", image_size=16, batch_size=8),
        optimizer=OptimizerConfig(optimizer=optimizer),
    )
    with tf.Graph().as_default():
        tf1.set_random_seed(1)
        train_step.build_train_graph(config, Group(), open_dataset(config.data))
        variables = tf1.global_variables()
        initializer = build_initializer()
        with tf1.Session(config=session.create_config()) as run:
            constants = list_constants(run, initializer)
            values = run.run(variables)
    return dict(zip((v.op.name for v in variables), values, strict=True)), constants


def list_constants(run, operation):
    """The sizes of constants in the graph that a session keeps for an operation, which it runs."""
    options = tf1.RunOptions(output_partition_graphs=True)
    metadata = tf1.RunMetadata()
    run.run(operation, options=options, run_metadata=metadata)
    return [
        np.prod([each.size for each in node.attr["value"].tensor.tensor_shape.dim], dtype=int)
        for partition in metadata.partition_graphs
        for node in partition.node
        if node.op == "Const"
    ]


@pytest.mark.parametrize(
    ("optimizer", "slot", "number"),
    [("rmsprop", "RMSProp", 1), pytest.param("adam", "Adam", 0, marks=pytest.mark.slow)],
)
def test_values_are_those_of_tensorflows_initializer_and_are_no_constants(optimizer, slot, number):
    expected, folded = run_initially(tf1.global_variables_initializer, optimizer)
    values, constants = run_initially(initial_values.build_initializer, optimizer)
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[name], value) for name, value in expected.items())
    slots = [value for name, value in values.items() if name.endswith(f"/{slot}")]
    assert any(value.size > LARGE and np.all(value == number) for value in slots)
    assert max(folded) > LARGE  # Else there would be nothing to mend.
    assert max(constants) <= LARGE


def test_sums_over_the_batches_of_an_update_are_set_to_zeros_that_are_no_constants():
    with tf.Graph().as_default(), tf1.Session(config=session.create_config()) as run:
        sums = Accumulator([tf.ones([64, 64])], 2)
        reset = sums.build_reset()
        for _ in range(2):
            assert max(list_constants(run, reset), default=0) <= LARGE
            run.run(sums.add_op)
            assert np.array_equal(run.run(sums.means[0]), np.ones([64, 64]))
