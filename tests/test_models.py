"""Finding a network, and the contract of those that a user brings."""

import inspect
import textwrap

import pytest
import tensorflow as tf

import models
from models import resnet_v2
from models.slim_compat import slim

tf1 = tf.compat.v1


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The example in the package's docstring, as the module that a user would write."""
    indented = [
        line for line in (models.__doc__ or "").splitlines() if not line or line.startswith("    ")
    ]
    (tmp_path / "my_nets.py").write_text(textwrap.dedent("\n".join(indented)))
    monkeypatch.syspath_prepend(tmp_path)
    return models.get("my_nets:tiny")


@pytest.mark.parametrize("name", models.NAMES)
def test_get_finds_a_network_by_name(name):
    network = models.get(name)
    assert network.fn is getattr(resnet_v2, name)
    assert network.arg_scope_fn is models.resnet_arg_scope
    assert (network.default_image_size, network.minimum_image_size) == (224, 32)


def test_documented_example_keeps_the_contract(tiny):
    assert tiny.minimum_image_size == 8
    with tf.Graph().as_default(), tf1.Session() as session:
        images = tf.random.uniform([2, 8, 8, 3], -1, 1)
        with slim.arg_scope(tiny.arg_scope_fn(weight_decay=0.5)):
            logits, end_points = tiny.fn(images, num_classes=5, is_training=True)
        (weights,) = slim.get_variables("conv1/weights")
        (loss,) = tf1.losses.get_regularization_losses()
        session.run(tf1.global_variables_initializer())
        assert session.run(logits).shape == (2, 5)
        assert session.run(loss) == pytest.approx((session.run(weights) ** 2).sum() * 0.25)
        assert tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)
        assert "pool" in end_points


@pytest.mark.parametrize("is_training", [False, True])
def test_documented_example_is_in_the_mode_that_it_is_asked_for(tiny, is_training):
    with tf.Graph().as_default() as graph, slim.arg_scope(tiny.arg_scope_fn()):
        tiny.fn(tf.zeros([2, 8, 8, 3]), num_classes=5, is_training=is_training)
    (norm,) = [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]
    assert norm.get_attr("is_training") == is_training


def test_documented_example_shares_its_variables(tiny):
    with tf.Graph().as_default(), slim.arg_scope(tiny.arg_scope_fn()):
        for is_training in (True, False):
            with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
                tiny.fn(tf.zeros([2, 8, 8, 3]), num_classes=5, is_training=is_training)
        assert len({v.name for v in tf1.global_variables()}) == len(tf1.global_variables()) == 7


def test_documented_example_is_found_where_users_have_it(tiny):
    assert tiny.name == "my_nets:tiny"
    assert list(inspect.signature(tiny.fn).parameters) == [
        "images",
        "num_classes",
        "is_training",
    ]


def test_a_network_may_bring_its_own_arg_scope(tmp_path, monkeypatch):
    (tmp_path / "nets_with_scope.py").write_text(
        "def net(images, num_classes, is_training):\n    raise NotImplementedError\n"
        "net.arg_scope_fn = dict\nnet.default_image_size = 96\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = models.get("nets_with_scope:net")
    assert network.arg_scope_fn is dict
    assert network.default_image_size == 96
    assert network.minimum_image_size == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet_v2_51",
            "must be one of resnet_v2_50, .*package.module:function, got 'resnet_v2_51'",
        ),
        ("", "must be one of .*, got ''"),
        ("models.resnet_v2:", "must be one of .*, got 'models.resnet_v2:'"),
        (":resnet_v2_50", "must be one of .*, got ':resnet_v2_50'"),
        (
            "no_such_module:net",
            r"cannot import module no_such_module \(No module named .*\), got",
        ),
        (".resnet_v2:resnet_v2_50", r"cannot import module .resnet_v2 .*, got"),
        (
            "models.resnet_v2:resnet_v3",
            "module models.resnet_v2 has no function resnet_v3, got",
        ),
        ("models:NAMES", "module models has no function NAMES, got 'models:NAMES'"),
    ],
)
def test_an_unknown_network_is_one_line(name, message):
    with pytest.raises(models.UnknownModelError, match=message) as error:
        models.get(name)
    assert "\n" not in str(error.value)


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(models.UnknownModelError, match="a_package_that_is_not_there"):
        models.get("broken_nets:net")


def test_check_image_size_refuses_what_is_too_small():
    network = models.get("resnet_v2_50")
    models.check_image_size(network, 32)
    with pytest.raises(ValueError, match=r"^must be at least 32 for resnet_v2_50, got 31$"):
        models.check_image_size(network, 31)


@pytest.mark.slow
def test_the_least_image_size_builds_and_runs():
    network = models.get("resnet_v2_50")
    with tf.Graph().as_default(), tf1.Session() as session:
        images = tf.zeros([2, network.minimum_image_size, network.minimum_image_size, 3])
        with slim.arg_scope(network.arg_scope_fn()):
            logits, _ = network.fn(images, num_classes=3, is_training=True)
        session.run(tf1.global_variables_initializer())
        assert session.run(logits).shape == (2, 3)
