"""Batches that are copied to the device ahead of the step, which a second CPU stands for."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from input_data import create_config, write_folder

from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs import dataset
from trainer.machine import session

pytestmark = pytest.mark.slow

DEVICE = "/cpu:1"


@pytest.fixture
def images(tmp_path):
    write_folder(tmp_path, {"train/a": 7, "train/b": 6, "validation/a": 4, "validation/b": 3})
    return tmp_path


def open_images(folder, **fields):
    config = create_config(data_dir=str(folder), mixup=0.5, cutmix=0.5, augment="shift", **fields)
    return dataset.open_dataset(config)


def read(build, *, start=0, steps=None):
    """Runs a stream; returns its batches and the devices that they are on."""
    with tf.Graph().as_default() as graph:
        stream = build()
        graph.finalize()
        config = tf1.ConfigProto(device_count={"CPU": 2})
        with tf1.Session(config=config) as running, stream.explain_errors():
            running.run(stream.initializer, {stream.start_step: start})
            count = stream.steps - start if steps is None else steps
            batches = [running.run(stream.batch) for _ in range(count)]
            return batches, {part.device for part in stream.batch}, stream


@pytest.fixture
def both(monkeypatch):
    """Reads a stream as it is, and through the device."""

    def read_both(build, **options):
        found = []
        for device in ("/cpu:0", DEVICE):
            monkeypatch.setattr(session, "step_device", lambda device=device: device)
            found.append(read(build, **options))
        (plain, _, _), (copied, devices, stream) = found
        assert devices == {"/device:CPU:1"}
        for one, other in zip(plain, copied, strict=True):
            for field, expected, got in zip(one._fields, one, other, strict=True):
                np.testing.assert_array_equal(got, expected, err_msg=field, strict=True)
        return copied, stream

    return read_both


def test_nothing_is_put_on_the_device_that_gpus_have_not(monkeypatch, images):
    """They have one operation that gives a string; a constant, a device's name say, is none."""
    monkeypatch.setattr(session, "step_device", lambda: DEVICE)
    data = open_images(images)
    with tf.Graph().as_default() as graph:
        data.build_train(Worker(), seed=0)
    placed = [operation for operation in graph.get_operations() if "CPU:1" in operation.device]
    assert {operation.type for operation in placed} >= {"IteratorV2", "IteratorGetNext"}
    strings = [each for each in placed if tf.string in [part.dtype for part in each.outputs]]
    assert {operation.type for operation in strings} <= {"IteratorToStringHandle"}


@pytest.mark.parametrize("start", [0, 5])
def test_training_batches_are_the_same(both, images, start):
    data = open_images(images)
    batches, _ = both(lambda: data.build_train(Worker(1, 2), seed=3), start=start, steps=9)
    assert len({batch.images.tobytes() for batch in batches}) == 9


def test_an_evaluation_is_the_same_to_its_end(both, images):
    data = open_images(images)
    batches, stream = both(lambda: data.build_evaluation(Worker()))
    assert sum(batch.weights.sum() for batch in batches) == 7
    with pytest.raises(tf.errors.OutOfRangeError):
        read(lambda: data.build_evaluation(Worker()), steps=stream.steps + 1)


def test_bad_images_are_replaced_alike(both, images):
    (images / "train" / "a" / "1.png").write_bytes(b"text")
    data = open_images(images, max_bad_examples=1)
    _, stream = both(lambda: data.build_train(Worker(), seed=0), steps=8)
    assert stream.bad_examples() == 1


def test_an_error_comes_through(monkeypatch, images):
    (images / "train" / "a" / "1.png").write_bytes(b"text")
    monkeypatch.setattr(session, "step_device", lambda: DEVICE)
    data = open_images(images)
    with pytest.raises(UserError, match=r"1\.png: a bad image: neither"):
        read(lambda: data.build_train(Worker(), seed=0), steps=8)


# Batches of one chunk, of two, and of rows of two.
@pytest.mark.parametrize("batch_size", [4, 64, 33])
def test_no_function_on_the_host_is_prepared_for_several_devices(images, batch_size):
    """Each start of a stream would take 0.1 s longer."""
    data = open_images(images, batch_size=batch_size)
    with tf.Graph().as_default() as graph:
        data.build_train(Worker(), seed=0)
        data.build_evaluation(Worker())
    library = {each.signature.name: each for each in graph.as_graph_def().library.function}
    nodes = [*graph.as_graph_def().node]
    nodes += [node for function in library.values() for node in function.node_def]
    assert not [node.name for node in nodes if "PartitionedCall" in node.op]
    called = {
        value.func.name
        for node in nodes
        if "Dataset" in node.op
        for value in node.attr.values()
        if value.HasField("func")
    }
    # An evaluation's batch is no larger than its data: it is of one chunk here.
    assert len(called) == 8 + (batch_size == 64)
    for name in called:
        assert library[name].attr["experimental_ints_on_device"].b, name
        assert library[name].attr["_tf_data_function"].b, name  # Left alone by graph optimizers.
