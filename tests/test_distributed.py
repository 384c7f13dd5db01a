"""Two workers under horovodrun against numpy and a one-process run."""

import json
import os
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import tiny
import two_workers
from processes import horovodrun
from test_reduction import adasum_of

from trainer import distributed
from trainer.config import Config
from trainer.distributed import Group, Worker
from trainer.errors import UserError
from trainer.graph.images import normalize
from trainer.graph.network import build_logits
from trainer.process import host_cores, settings

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with what two workers left behind."""
    path = tmp_path_factory.mktemp("two_workers")
    done = horovodrun(2, ["tests/programs/two_workers.py", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "[unbound_buffer.cc:95] Timed out waiting 20000ms for recv operation to complete",
            "Timed out waiting 20000ms for recv operation to complete",
        ),
        (
            "two\n[[tcp/pair.cc:589] Connection closed by peer [127.0.0.1]:5\n\t [[{{node x}}]]",
            "Connection closed by peer [127.0.0.1]:5",
        ),
        ("Horovod has been shut down. This was caused by", "see Horovod's lines above"),
    ],
)
def test_a_collective_that_fails_because_of_another_worker_is_explained(message, told):
    """As Gloo says it where a worker stands still, or ends, in the midst of an all-reduce."""
    group = distributed.HorovodGroup.__new__(distributed.HorovodGroup)
    group.worker = Worker(0, 2, 0, 2)
    with (
        pytest.raises(UserError, match="worker 0 of 2 ends, since another one has") as caught,
        group.explain_loss(),
    ):
        raise tf.errors.UnknownError(None, None, message)
    assert str(caught.value).endswith(f"(its last lines say why) or does not answer ({told})")


def load(folder, name):
    return [dict(np.load(folder / f"{name}_{rank}.npz")) for rank in (0, 1)]


def reports(folder):
    return [json.loads((folder / f"report_{rank}.json").read_text()) for rank in (0, 1)]


def difference(ours, expected):
    """The largest difference, relative to the largest value of each variable."""
    return max(
        np.max(np.abs(ours[name] - value)) / max(np.max(np.abs(value)), 1e-3)
        for name, value in expected.items()
    )


def simulate(initial, batches):
    """The same steps in one process: numpy averages both workers' gradients and updates.

    Returns:
      the trained variables, and the moving statistics, by name; and the losses of the steps.
    """
    config = Config(**tiny.config_groups())
    values = {name: value.copy() for name, value in initial.items()}
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.uint8, [tiny.BATCH_SIZE, 16, 16, 3])
        labels = tf1.placeholder(tf.int32, [tiny.BATCH_SIZE])
        logits = build_logits(
            config.model,
            normalize(images, config.data),
            num_classes=tiny.NUM_CLASSES,
            is_training=True,
        )
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        trained = tf1.trainable_variables()
        names = [variable.op.name for variable in trained]
        gradients = tf.gradients(tf.reduce_mean(losses), trained)
        of_steps = []
        moving = [v for v in tf1.global_variables() if "moving" in v.op.name]
        updates = tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)
        momentum = {name: np.zeros_like(values[name]) for name in names}
        with tf1.Session() as session:

            def load(variables):
                for variable in variables:
                    variable.load(values[variable.op.name], session)

            for step in range(two_workers.STEPS):
                of_workers, statistics = [], []
                kernels = [values[name] for name in names if name.endswith("/weights")]
                decay = config.model.weight_decay * sum(np.sum(w**2) for w in kernels) / 2
                of_steps.append(decay)
                for batch in batches:
                    load(tf1.global_variables())
                    feed = {images: batch["images"][step], labels: batch["labels"][step]}
                    own, gradient = session.run((losses, gradients), feed)
                    of_workers.append(gradient)
                    of_steps[-1] += np.mean(own) / len(batches)
                    session.run(updates, feed)
                    statistics.append(session.run(moving))
                for name, *gradient in zip(names, *of_workers, strict=True):
                    mean = np.mean(gradient, axis=0)
                    if name.endswith("/weights"):
                        mean = mean + config.model.weight_decay * values[name]
                    momentum[name] = config.optimizer.momentum * momentum[name] + mean
                    values[name] = values[name] - two_workers.LEARNING_RATE * momentum[name]
                for variable, *statistic in zip(moving, *statistics, strict=True):
                    values[variable.op.name] = np.mean(statistic, axis=0)
    return {name: values[name] for name in [*names, *(v.op.name for v in moving)]}, of_steps


def test_the_broadcast_makes_all_start_from_rank_0(folder):
    first, second = load(folder, "averaged_initial")
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_the_broadcast_gives_each_variable_rank_0s_values(folder):
    expected = two_workers.values_of(0)
    for values in load(folder, "broadcast"):
        assert values.keys() == expected.keys()
        for name, value in values.items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_workers_read_different_examples(folder):
    first, second = load(folder, "averaged_batches")
    seen = [{image.tobytes() for image in b["images"][0]} for b in (first, second)]
    assert len(seen[0]) == len(seen[1]) == tiny.BATCH_SIZE
    assert not seen[0] & seen[1]


def test_all_variables_stay_bit_identical(folder):
    first, second = load(folder, "averaged_final")
    assert any("moving_mean" in name for name in first)
    assert any("Momentum" in name for name in first)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_two_workers_equal_one_process_that_averages_their_gradients(folder):
    batches = load(folder, "averaged_batches")
    expected, losses = simulate(load(folder, "averaged_initial")[0], batches)
    assert difference(load(folder, "averaged_final")[0], expected) < 1e-5
    for of_worker in batches:
        np.testing.assert_allclose(of_worker["loss"], losses, rtol=1e-5)


def test_without_averaging_they_do_not(folder):
    batches = load(folder, "alone_batches")
    expected, _ = simulate(load(folder, "alone_initial")[0], batches)
    first, second = load(folder, "alone_final")
    assert difference(first, expected) > 1e-3
    assert difference(first, second) > 1e-3


@pytest.mark.parametrize("name", ["poisoned", "poisoned_float16"])
def test_what_one_worker_spoils_none_applies(folder, name):
    first, second = load(folder, name)
    for variable, value in first.items():
        np.testing.assert_array_equal(value, second[variable], err_msg=variable)
        assert np.all(np.isfinite(value)), variable
    of_workers = [report["updates"][name]["metrics"] for report in reports(folder)]
    for steps in of_workers:
        assert [step["is_applied"] for step in steps] == [1, 0, 1]
    assert [steps[1]["nonfinite_gradient"] for steps in of_workers] == [-1, 0]
    if name == "poisoned_float16":
        assert first["loss_scale/scale"] == 2**14
        for steps in of_workers:
            assert [step["loss_scale"] for step in steps] == [2**15, 2**15, 2**14]


def test_accumulated_batches_make_the_update_of_large_ones_with_one_allreduce(folder):
    small, large = (load(folder, f"{size}_batches")[0] for size in ("small", "large"))
    assert difference(small, large) < 1e-5
    for report in reports(folder):
        small, large = (report["updates"][f"{size}_batches"] for size in ("small", "large"))
        trained = 4  # Kernel and bias of two layers.
        assert small["collectives"] == {"batch": 0, "update": trained + 1}
        assert large["collectives"] == {"update": trained + 1}
        for ours, theirs in zip(small["metrics"], large["metrics"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("compression", ["none", "float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["average", "adasum"])
def test_reduced_gradients_are_numpys_and_the_same_on_both_workers(folder, reduction, compression):
    first, second = load(folder, f"{reduction}_{compression}")
    gradients = zip(*(two_workers.gradients_of(rank) for rank in (0, 1)), strict=True)
    # What is sent is rounded, and so is what comes back: of each, half a unit in the last place.
    tolerance = {"none": 1e-6, "float16": 2**-10, "bfloat16": 2**-7}[compression]
    for number, pair in enumerate(gradients):
        name = f"arr_{number}"
        expected = np.mean(pair, axis=0) if reduction == "average" else adasum_of(*pair)
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == np.float32
        largest = np.max(np.abs(pair))
        np.testing.assert_allclose(first[name], expected, rtol=0, atol=tolerance * largest)
        if compression == "bfloat16":  # It has no more digits than that type.
            np.testing.assert_array_equal(first[name].view(np.uint32) & 0xFFFF, 0)


def test_bfloat16_averages_are_rounded_sums_of_rounded_gradients(folder):
    """Bit for bit: sums are of float32, in the order of ranks."""
    first = load(folder, "average_bfloat16")[0]
    for number, pair in enumerate(zip(*map(two_workers.gradients_of, (0, 1)), strict=True)):
        sent = [each.astype(tf.bfloat16.as_numpy_dtype).astype(np.float32) for each in pair]
        mean = ((sent[0] + sent[1]) / 2).astype(tf.bfloat16.as_numpy_dtype)
        np.testing.assert_array_equal(first[f"arr_{number}"], mean.astype(np.float32))


def test_all_workers_see_a_request_at_the_same_step(folder):
    for report in reports(folder):
        steps = report["updates"]["large_batches"]["metrics"]
        assert [step["request"] for step in steps] == [0.5, 0, 0]


def test_the_loss_is_the_same_on_all_workers(folder):
    first, second = load(folder, "averaged_batches")
    np.testing.assert_array_equal(first["loss"], second["loss"])


def test_evaluation_counts_each_example_once(folder):
    for report in reports(folder):
        assert report["evaluation"]["count"] == tiny.VALIDATION_EXAMPLES


def test_gather_gives_every_worker_everything(folder):
    for report in reports(folder):
        assert report["gathered"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "é"}]


@pytest.mark.skipif(
    settings.has_gpu() or not 2 <= len(os.sched_getaffinity(0)) == host_cores.available_cores(),
    reason="only workers with cores to themselves are bound to them",
)
def test_all_threads_of_a_worker_stay_on_its_own_cores(folder):
    first, second = (
        {tuple(of_thread) for of_thread in report["cores"]} for report in reports(folder)
    )
    ((ours,), (theirs,)) = first, second
    assert not {*ours} & {*theirs}
    assert {*ours} | {*theirs} == os.sched_getaffinity(0)


# One of two workers whose cycles take a day: a gradient waits, until the step's last tensor comes.
_WITH_LONG_CYCLES = """
import os, time
import fast_tensorflow
import numpy as np
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
def compute():
    time.sleep(0.5)
    return np.float32(hvd.rank())
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    early = tf.compat.v1.placeholder(tf.float32, [])  # TensorFlow would fold a constant.
    gradient = hvd.allreduce(early, op=hvd.Sum, name="gradient/weights")
    late = tf.ensure_shape(tf.numpy_function(compute, [], tf.float32), [])
    last = hvd.allreduce(late, op=hvd.Average, name="urgent/statistics")
    for _ in range(3):
        print(session.run([gradient, last], {early: 1.0}) == [2.0, 0.5], flush=True)
os._exit(0)  # Horovod's thread would sleep on.
"""


def test_what_is_waited_for_does_not_wait_for_horovods_cycle():
    """Nor what has come with it: a patch of Horovod, speed/01-urgent-tensors."""
    command = ["-c", _WITH_LONG_CYCLES]
    done = horovodrun(2, command, HOROVOD_CYCLE_TIME="86400000", timeout_sec=120)
    assert done.stdout.count("True") == 6, done.stdout + done.stderr


@pytest.mark.parametrize(("way", "buffers"), [("shared", 3), ("gloo", 0)])
def test_sums_through_shared_memory_are_exact_and_gloo_stands_in_for_it(way, buffers):
    """The sums of float32 are numpy's, bit for bit, however many tensors pass at once.

    Each way has a launch of its own: workers that start Horovod again may find addresses of the
    start before.
    """
    command = ["tests/programs/shared_memory_sums.py", way]
    done = horovodrun(3, command, HOROVOD_CYCLE_TIME="1")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert done.stdout.count(f"[] wrong, {buffers} buffers") == 3, said


def test_one_workers_mistake_is_told_on_all(folder):
    for report in reports(folder):
        assert report["one_fails"] == "worker 1 of 2: its disk is full"


def test_alone_nothing_needs_horovod():
    group = Group()
    assert group.worker == Worker(rank=0, size=1, local_rank=0, local_size=1)
    assert group.gather([1, 2]) == [[1, 2]]
    with pytest.raises(UserError, match=r"^no disk$"), group.fail_together():
        raise UserError("no disk")


def test_a_launcher_without_horovod_is_told_what_to_do(monkeypatch):
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "horovod.tensorflow", None)
    expected = pytest.raises(UserError, match=r"horovodrun started 2 workers, .*scripts/setup.sh")
    with mock.patch.dict(os.environ), expected:  # It sets variables for Horovod.
        distributed.connect()
