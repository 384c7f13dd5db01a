"""The start from weights: what it tells of them, and where it finds them."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from test_fine_tuning import create_config, save_tiny, start_tiny

from trainer.checkpoints import search
from trainer.checkpoints.warm_start import Head
from trainer.distributed import Group
from trainer.errors import UserError
from trainer.graph import learning_rate, train_step
from trainer.graph.selection import Selection
from trainer.inputs.dataset import open_dataset

tf1 = tf.compat.v1
NAMES = ["cat", "dog", "emu", "fox"]


@pytest.mark.parametrize(
    ("class_names", "loss", "trainable", "parts"),
    [
        (NAMES, "softmax", None, ()),
        (None, "softmax", None, ()),  # Not known.
        (
            ["dog", "cat", "emu", "fox"],
            "softmax",
            None,
            ("was made for cat, dog, emu and 1 more", "this data has dog, cat, emu and 1 more"),
        ),
        (["a", "b"], "softmax", "conv2", ("this data has a, b", "afresh; and it is not trained")),
        (NAMES, "sigmoid", None, ("was made with --loss=softmax", "this run has --loss=sigmoid")),
    ],
)
def test_a_head_for_other_classes_or_another_loss_is_told(
    tmp_path, class_names, loss, trainable, parts
):
    save_tiny(tmp_path / "ckpt")
    made = {"class_names": NAMES, "loss": "softmax"}
    (tmp_path / "model.json").write_text(json.dumps(made))
    head = Head(class_names and tuple(class_names), loss)
    messages, values = start_tiny(tmp_path / "ckpt", head=head, trainable_scopes=trainable)
    told = [line for line in messages if "the layer that makes the logits" in line]
    assert len(told) == bool(parts)
    assert all(part in told[0] for part in parts)
    assert np.all(values["logits/weights"] == 1)  # It is loaded all the same.
    # One that is not loaded has no past.
    messages, _ = start_tiny(tmp_path / "ckpt", head=head, exclude_scopes="logits")
    assert not [line for line in messages if "the layer that makes the logits" in line]


def save_values(path, **values):
    """A checkpoint of the tiny network whose variables are 1, but for those given."""
    save_tiny(path)
    reader = tf.train.load_checkpoint(str(path))
    names = sorted(reader.get_variable_to_shape_map())
    tensors = [
        values[name.replace("/", "__")](reader.get_tensor(name))
        if name.replace("/", "__") in values
        else reader.get_tensor(name)
        for name in names
    ]
    tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value / 0 * 0, "must have finite values, got .*those of conv1/weights"),
        (lambda value: value.astype(str), "conv1/weights is string in the checkpoint, float32"),
        (lambda value: value.astype(int), "conv1/weights is int64 in the checkpoint, float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning")
def test_values_that_no_network_has_are_refused(tmp_path, change, message):
    save_values(tmp_path / "ckpt", conv1__weights=change)
    with pytest.raises(UserError, match=message):
        start_tiny(tmp_path / "ckpt")
    messages, _ = start_tiny(tmp_path / "ckpt", exclude_scopes="conv1/weights")
    assert "initialized afresh: conv1/weights (1 variable)" in messages


def test_weights_in_another_precision_are_taken(tmp_path):
    save_values(
        tmp_path / "ckpt",
        conv1__weights=lambda value: value.astype(np.float64),
        conv2__weights=lambda value: tf.cast(value, tf.bfloat16),
    )
    _, values = start_tiny(tmp_path / "ckpt")
    assert np.all(values["conv1/weights"] == 1)
    assert np.all(values["conv2/weights"] == 1)


def save_version(path, version):
    with tf.Graph().as_default(), tf1.Session() as session:
        session.run(tf1.assign(tf1.get_variable("v", [2], initializer=tf.zeros), [1.0, 2.0]))
        tf1.train.Saver(write_version=version).save(session, str(path))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["slims.ckpt"], "slims.ckpt"),
        (["model.ckpt-5", "model.ckpt-12"], "model.ckpt-12"),
        (["mine-5", "mine-12"], "mine-12"),
    ],
)
@pytest.mark.parametrize("version", [tf1.train.SaverDef.V1, tf1.train.SaverDef.V2])
def test_a_folder_means_its_newest_checkpoint_of_any_name(tmp_path, names, chosen, version):
    for name in names:
        save_version(tmp_path / name, version)
    (tmp_path / "notes.txt").write_text("These are others' weights.")
    found = search.resolve(str(tmp_path)).prefix
    assert found == str(tmp_path / chosen)
    assert tf.train.load_checkpoint(found).get_tensor("v").tolist() == [1, 2]
    assert search.resolve(str(tmp_path / "checkpoint")).prefix == found


def test_a_folder_of_different_checkpoints_is_refused_with_their_names(tmp_path):
    for name in ("resnet.ckpt", "vgg.ckpt"):
        save_version(tmp_path / name, tf1.train.SaverDef.V2)
    with pytest.raises(
        UserError, match=r"several checkpoints.* give one of resnet\.ckpt, vgg\.ckpt"
    ):
        search.resolve(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"has no checkpoint model\.ckpt-"):
        search.resolve(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"has no checkpoint model\.ckpt-"):
        search.resolve(str(tmp_path / "nowhere" / "checkpoint"))


def test_a_file_of_keras_is_refused_with_the_program_that_converts_it(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"convert_keras_weights\.py makes one of it"):
        search.resolve(str(tmp_path / "model.keras"))


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_a_scale_or_an_offset_that_is_named_is_trained_where_the_rest_of_bn_is_not(name):
    config = create_config(trainable_scopes=f"conv1/BatchNorm/{name}", freeze_batch_norm=True)
    with tf.Graph().as_default():
        train_step.build_train_graph(config, Group(), open_dataset(config.data))
        selection = Selection(config.fine_tuning)
        trained = [variable.op.name for variable in selection.trained_variables()]
        names = [variable.op.name for variable in tf1.global_variables()]
        assert trained == [f"conv1/BatchNorm/{name}"]
        assert selection.is_frozen_norm("conv2/BatchNorm")
        assert not selection.freezes_all(names)
        frozen = create_config(trainable_scopes="logits", freeze_batch_norm=True)
        assert Selection(frozen.fine_tuning).freezes_all(names)


def test_a_warm_up_that_falls_is_told():
    config = create_config().optimizer

    def told(**flags):
        changed = dataclasses.replace(config, base_learning_rate=0.1, **flags)
        return learning_rate.describe_warmup(changed, 32)

    (line,) = told(warmup_learning_rate=0.1, warmup_epochs=5.0)
    assert "--warmup_learning_rate=0.1 is above the peak of 0.0125" in line
    assert told(warmup_learning_rate=0.0125, warmup_epochs=5.0) == ()
    assert told(warmup_epochs=5.0) == ()
