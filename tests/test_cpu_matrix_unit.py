"""The compiled operations in use on a CPU with a matrix unit (AMX), which oneDNN's can use."""

from types import SimpleNamespace

import kernels
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels, skip_without_onednn

from trainer.config import Config, ModelConfig
from trainer.cpu_kernels import gradients, library, switch
from trainer.distributed import Group
from trainer.machine import session
from trainer.modes.doctor import probe_libraries
from trainer.run import setup
from trainer.safety import agreement


@pytest.fixture
def with_unit(monkeypatch):
    flags = library.cpu_flags()
    monkeypatch.setattr(library, "cpu_flags", lambda *_: flags | {"amx_bf16"})
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)


@pytest.fixture
def unnamed(monkeypatch):
    """The built operations, unless these tests were given others: those then take all."""
    if switch.read().library == library.LIBRARY:
        monkeypatch.delenv(switch.VARIABLE)
    elif switch.read().library:
        pytest.skip("these tests were given a library, which takes all convolutions")


def train(dtype):
    """A unit's result, statistics and gradients as float32, and the kinds of what ran."""
    with tf.Graph().as_default():
        rng = np.random.default_rng(0)
        shapes = [(5, 8, 8, 32), (1, 1, 32, 64), (64,), (64,), (3, 3, 64, 32), (32,)]
        values = [rng.normal(size=shape) for shape in shapes]
        # TensorFlow's optimizers do not rely on the shape of what is fed, but on that given here.
        feeds = {tf1.placeholder(tf.float32, [None] * value.ndim): value for value in values}
        inputs = [tf.reshape(fed, shape) for fed, shape in zip(feeds, shapes, strict=True)]
        images, first, scale, offset, second, bias = inputs
        with gradients.overridden():
            outputs = tf.nn.conv2d(tf.cast(images, dtype), tf.cast(first, dtype), 1, "SAME")
            outputs, mean, variance = tf1.nn.fused_batch_norm(outputs, scale, offset)
            outputs = tf.nn.conv2d(tf.nn.relu(outputs), tf.cast(second, dtype), 1, "SAME")
            outputs = tf.nn.bias_add(outputs, tf.cast(bias, dtype))
        values = [tf.cast(outputs, tf.float32), mean, variance]
        found = [*values, *tf.gradients(values[0] ** 2, inputs)]
        metadata = tf1.RunMetadata()
        options = tf1.RunOptions(output_partition_graphs=True)
        with tf1.Session(config=session.create_config()) as run:
            results = run.run([tf.identity(value) for value in found], feeds, options, metadata)
    kinds = {node.op for graph in metadata.partition_graphs for node in graph.node}
    return results, {kind.removeprefix("_MklNative").lstrip("_") for kind in kinds}


OF_CONVOLUTIONS = {"SlimHorovodConvolution", "SlimHorovodFilterGradient"}
OF_ALL_ELSE = {"SlimHorovodNorm", "SlimHorovodNormGradient", "SlimHorovodBiasGradient"}


@needs_kernels
@pytest.mark.usefixtures("with_unit", "unnamed")
def test_convolutions_of_bfloat16_are_tensorflows_and_all_else_is_compiled(monkeypatch):
    skip_without_onednn(tf.bfloat16)
    assert library.describe(tf.bfloat16) == "on but for convolutions"
    found, kinds = train(tf.bfloat16)
    assert kinds >= OF_ALL_ELSE
    assert not kinds & OF_CONVOLUTIONS
    assert kinds >= {"Conv2DBackpropFilter", "Conv2DBackpropInput"}
    monkeypatch.setenv(switch.VARIABLE, "0")
    expected, kinds = train(tf.bfloat16)
    assert not any(kind.startswith("SlimHorovod") for kind in kinds)
    for one, other in zip(found, expected, strict=True):
        error = np.sqrt(np.mean((one - other) ** 2))
        assert error < 0.02 * np.sqrt(np.mean(other**2))


@needs_kernels
@pytest.mark.usefixtures("with_unit", "unnamed")
def test_those_of_float32_are_compiled():
    assert library.describe(tf.float32) == "on"
    _, kinds = train(tf.float32)
    assert kinds >= OF_ALL_ELSE | OF_CONVOLUTIONS


@needs_kernels
@pytest.mark.usefixtures("with_unit", "unnamed")
def test_where_nothing_would_use_the_unit_those_of_bfloat16_are_compiled(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert library.describe(tf.bfloat16) == "on"


@pytest.mark.usefixtures("with_unit")
@pytest.mark.parametrize("is_used", [True, False])
def test_doctor_tells_it_where_there_are_compiled_ones(monkeypatch, is_used):
    monkeypatch.setenv(switch.VARIABLE, "1")
    monkeypatch.setattr(library, "reason_for_none", lambda: "" if is_used else "none were built")
    told = probe_libraries.tensorflow()["kernels"]["convolutions"]
    assert ("matrix unit (AMX)" in told) == is_used


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_a_run_compares_and_records_is_that_of_its_precision(monkeypatch, precision):
    config = Config(model=ModelConfig(precision=precision))
    monkeypatch.setattr(library, "describe", lambda dtype: dtype.name)
    info = SimpleNamespace(num_train_examples=1, fingerprint="", exif_orientation="apply")
    plan = SimpleNamespace(global_batch_size=1, total_steps=1)
    assert setup._create_facts(config, Group(), info, plan).kernels == precision
    asked = []
    monkeypatch.setattr(agreement, "check_kernels", lambda group, dtype: asked.append(dtype))
    agreement.check_program(Group(), config)
    assert asked == [tf.as_dtype(precision)]


@needs_kernels
@pytest.mark.usefixtures("with_unit", "unnamed")
def test_tests_of_the_kernels_have_all(monkeypatch):
    kernels.all_of_them(monkeypatch)
    assert library.describe(tf.bfloat16) == "on"
    assert kernels.describe() == "natively"


@needs_kernels
@pytest.mark.usefixtures("with_unit")
def test_a_library_that_is_named_takes_all(monkeypatch):
    monkeypatch.setenv(switch.VARIABLE, str(switch.read().library or library.LIBRARY))
    assert library.describe(tf.bfloat16) == "on"
    _, kinds = train(tf.bfloat16)
    assert kinds >= OF_CONVOLUTIONS
