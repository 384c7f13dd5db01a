"""models.resnet_v2 against slim's own networks, which are the reference throughout."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from tf_slim.nets import resnet_utils as slim_resnet_utils
from tf_slim.nets import resnet_v2 as slim_resnet_v2

import models
from models import resnet_utils, resnet_v2
from models.slim_compat import slim
from trainer.checkpoints import restore

tf1 = tf.compat.v1

SMALL_BLOCKS = [
    ("block1", 4, 2, 2),
    ("block2", 4, 1, 2),
    ("block3", 8, 1, 2),
    ("block4", 8, 1, 1),
]

OURS = (resnet_v2, resnet_utils)
SLIMS = (slim_resnet_v2, slim_resnet_utils)
# resnet_v2_50's trainable values, for 1000 classes.
PUBLISHED_SIZE = 25_568_360
# What decides where a convolution looks, beside the shape of its kernel.
LAYOUT = ("strides", "dilations", "padding", "data_format")


def build_small(modules, images, **arguments):
    """A thin network of 5 units, from our modules or from slim's."""
    nets, utils = modules
    blocks = [nets.resnet_v2_block(*block) for block in SMALL_BLOCKS]
    arguments = {"scope": "small", **arguments}
    with slim.arg_scope(utils.resnet_arg_scope()):
        return nets.resnet_v2(images, blocks, **arguments)


def random_initial_values(seed):
    """Values that leave no BN parameter at its default: {initial value tensor: array}."""
    rng = np.random.default_rng(seed)
    ranges = {
        "gamma": (0.5, 1.5),
        "beta": (-0.5, 0.5),
        "moving_mean": (-0.5, 0.5),
        "moving_variance": (0.5, 2.0),
        "biases": (-0.1, 0.1),
    }
    return {
        variable.initializer.inputs[1]: rng.uniform(*ranges[kind], variable.shape)
        for variable in tf1.global_variables()
        if (kind := variable.op.name.rpartition("/")[2]) in ranges
    }


def assert_relatively_close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


class Towers:
    """resnet_v2_50 with 1000 classes, in both modes, for images of any size, in a graph."""

    def __init__(self, modules):
        nets, utils = modules
        with tf.Graph().as_default() as self.graph:
            tf1.set_random_seed(1)
            self.images = tf1.placeholder(tf.float32, [None, None, None, 3])
            self.logits, self.end_points = {}, {}
            for is_training in (False, True):
                with slim.arg_scope(utils.resnet_arg_scope()):
                    logits, end_points = nets.resnet_v2_50(
                        self.images, 1000, is_training=is_training, reuse=is_training
                    )
                self.logits[is_training] = tf.reshape(logits, [-1, 1000])
                self.end_points[is_training] = set(end_points)
            self.decay_losses = tf1.losses.get_regularization_losses()
            # Of one tower: the second has the same weights again.
            self.decay_loss = tf.add_n(self.decay_losses)

    def structure(self):
        """Returns what the network has added to the graph."""
        with self.graph.as_default():
            return {
                "variables": [(v.name, v.shape.as_list(), v.dtype) for v in tf1.global_variables()],
                "trainable": [v.name for v in tf1.trainable_variables()],
                "model": [v.name for v in slim.get_model_variables()],
                "updates": [op.name for op in tf1.get_collection("update_ops")],
                "regularization": [loss.name for loss in self.decay_losses],
                "convolutions": [
                    (operation.inputs[1].shape.as_list(), *map(operation.get_attr, LAYOUT))
                    for operation in self.graph.get_operations()
                    if operation.type == "Conv2D"
                ],
            }

    def run(self, session, images):
        return session.run([self.logits, self.decay_loss], {self.images: images})


@pytest.fixture(scope="module")
def networks():
    """The networks of this project and of slim."""
    return Towers(OURS), Towers(SLIMS)


@pytest.mark.slow
def test_variables_updates_and_losses_are_slims(networks):
    ours, slims = networks
    for is_training, points in slims.end_points.items():
        extra = ours.end_points[is_training] - points
        assert points <= ours.end_points[is_training]
        assert {point.rpartition("/")[2] for point in extra} == {"global_pool", "spatial_squeeze"}
    structure = ours.structure()
    assert structure == slims.structure()
    trainable = set(structure["trainable"])
    shapes = {each: shape for each, shape, _ in structure["variables"]}
    assert sum(np.prod(shapes[each]) for each in trainable) == PUBLISHED_SIZE
    assert len(shapes) == 272
    assert len(structure["updates"]) == 98
    assert len(structure["regularization"]) == 54


def list_units(nets, name, monkeypatch):
    """The units of a network, and what else its function gives the one that builds them all."""
    signature = inspect.signature(nets.resnet_v2)
    calls = []

    def note(*given, **named):
        calls.append(signature.bind(*given, **named).arguments)

    monkeypatch.setattr(nets, "resnet_v2", note)
    getattr(nets, name)("images", 7, is_training=False)
    (arguments,) = calls
    # slim's has no such argument: its logits keep the 1 x 1.
    named = {name: value for name, value in arguments.items() if name != "spatial_squeeze"}
    return [(block.scope, list(block.args)) for block in named.pop("blocks")], named


@pytest.mark.parametrize("name", models.NAMES)
def test_the_networks_differ_in_their_units_as_slims_do(name, monkeypatch):
    """What builds the units is the same for all, and is compared for resnet_v2_50."""
    ours = list_units(resnet_v2, name, monkeypatch)
    name_of_slims = name.removeprefix("keras_")
    assert ours == list_units(slim_resnet_v2, name_of_slims, monkeypatch)
    blocks, named = ours
    assert (named["inputs"], named["scope"], named["num_classes"]) == ("images", name_of_slims, 7)
    # A unit has three layers; the first convolution and the logits are the others.
    assert f"resnet_v2_{3 * sum(len(units) for _, units in blocks) + 2}" == name_of_slims


@pytest.mark.slow
def test_without_the_arg_scope_resnet_v2_50_has_not_the_published_size():
    """Neither gamma nor the BN in the residual are there then."""
    with tf.Graph().as_default():
        resnet_v2.resnet_v2_50(tf1.placeholder(tf.float32, [1, 224, 224, 3]), 1000)
        assert sum(v.shape.num_elements() for v in tf1.trainable_variables()) != PUBLISHED_SIZE


@pytest.mark.slow
def test_a_checkpoint_of_slims_network_gives_the_same_logits(networks, tmp_path):
    ours, slims = networks
    rng = np.random.default_rng(2)
    batches = [rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32) for size in (224, 299)]
    with tf1.Session(graph=slims.graph) as session, slims.graph.as_default():
        session.run(tf1.global_variables_initializer(), random_initial_values(seed=3))
        expected = [slims.run(session, images) for images in batches]
        prefix = tf1.train.Saver().save(session, str(tmp_path / "slim"))
    with tf1.Session(graph=ours.graph) as session, ours.graph.as_default():
        tf1.train.Saver().restore(session, prefix)
        actual = [ours.run(session, images) for images in batches]
    for (our_logits, our_loss), (slim_logits, slim_loss) in zip(actual, expected, strict=True):
        assert our_loss == pytest.approx(slim_loss, rel=1e-6)
        for is_training, logits in slim_logits.items():
            assert_relatively_close(our_logits[is_training], logits)
        # They differ, so that one cannot stand in for the other.
        assert not np.allclose(slim_logits[False], slim_logits[True], rtol=0.1)


@pytest.mark.parametrize(
    ("size", "arguments", "modes"),
    [
        (81, {"global_pool": False}, [True]),
        (81, {"global_pool": False, "num_classes": 5}, [True]),
        (81, {"global_pool": False, "output_stride": 4}, [True]),
        (80, {"global_pool": False, "output_stride": 8}, [True, False]),
        (81, {"global_pool": False, "output_stride": 16}, [True]),
        (81, {"global_pool": False, "output_stride": 32}, [True]),
        (33, {"include_root_block": False, "num_classes": 5, "output_stride": 2}, [True, False]),
        (33, {"include_root_block": False, "global_pool": False}, [True]),
        (64, {}, [True]),
    ],
)
@pytest.mark.slow
def test_every_argument_gives_slims_result(size, arguments, modes):
    """In training and, where `modes` has False, with the same variables in evaluation."""
    images = np.random.default_rng(4).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    results, values = [], {}
    for modules in (SLIMS, OURS):
        with tf.Graph().as_default(), tf1.Session() as session:
            tf1.set_random_seed(5)
            built = [
                build_small(
                    modules,
                    tf.constant(images),
                    is_training=is_training,
                    reuse=tf1.AUTO_REUSE,
                    **arguments,
                )
                for is_training in modes
            ]
            variables = {each.op.name: each for each in tf1.global_variables()}
            if values:
                # Without a file, which would take longer: the names are those of a checkpoint.
                assert variables.keys() == values.keys()
                restore.assign(session, [(variables[name], values[name]) for name in values])
            else:
                session.run(tf1.global_variables_initializer(), random_initial_values(seed=6))
                values = session.run(variables)
            results.append(session.run(built))
    squeezed = "num_classes" in arguments and arguments.get("global_pool", True)
    for (slim_net, slim_points), (our_net, our_points) in zip(*results, strict=True):
        assert_relatively_close(our_net, np.squeeze(slim_net, (1, 2)) if squeezed else slim_net)
        for name in slim_points.keys() - {"predictions"}:
            assert_relatively_close(our_points[name], slim_points[name])
        assert set(slim_points) <= set(our_points)


@pytest.mark.slow
def test_logits_features_and_predictions_have_their_documented_shapes():
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, [None, 65, 65, 3])
        logits, end_points = build_small(OURS, images, num_classes=7)
        assert logits.shape.as_list() == [None, 7]
        assert end_points["predictions"].shape.as_list() == [None, 7]
        assert end_points["small/logits"].shape.as_list() == [None, 1, 1, 7]
        assert end_points["global_pool"].shape.as_list() == [None, 1, 1, 32]
        kept, _ = build_small(OURS, images, num_classes=7, spatial_squeeze=False, scope="b")
        assert kept.shape.as_list() == [None, 1, 1, 7]
        features, end_points = build_small(OURS, images, num_classes=0, scope="c")
        assert features.shape.as_list() == [None, 1, 1, 32]
        assert "predictions" not in end_points
        maps, _ = build_small(OURS, images, num_classes=7, global_pool=False, scope="d")
        assert maps.shape.as_list() == [None, 3, 3, 7]


@pytest.mark.slow
def test_reuse_shares_all_variables():
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, [1, 64, 64, 3])
        build_small(OURS, images, num_classes=5)
        names = [v.name for v in tf1.global_variables()]
        with pytest.raises(ValueError, match="already exists"):
            build_small(OURS, images, num_classes=5)
        build_small(OURS, images, num_classes=5, reuse=True)
        build_small(OURS, images, num_classes=5, reuse=tf1.AUTO_REUSE)
        assert [v.name for v in tf1.global_variables()] == names


@pytest.mark.parametrize("output_stride", [1, 6, 64])
def test_an_output_stride_that_cannot_be_had_is_refused(output_stride):
    with (
        tf.Graph().as_default(),
        pytest.raises(ValueError, match="output_stride: must be"),
    ):
        build_small(
            OURS,
            tf1.placeholder(tf.float32, [1, 64, 64, 3]),
            output_stride=output_stride,
        )


def parameters(function):
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["bottleneck", "resnet_v2_block"])
def test_signatures_of_resnet_v2_are_slims(name):
    assert parameters(getattr(resnet_v2, name)) == parameters(getattr(slim_resnet_v2, name))


@pytest.mark.parametrize("name", ["resnet_v2", *models.NAMES])
def test_signatures_of_networks_are_slims_with_spatial_squeeze_before_reuse(name):
    expected = parameters(getattr(slim_resnet_v2, name.removeprefix("keras_")))
    place = [parameter for parameter, _ in expected].index("reuse")
    expected.insert(place, ("spatial_squeeze", True))
    assert parameters(getattr(resnet_v2, name)) == expected


@pytest.mark.parametrize("name", ["conv2d_same", "stack_blocks_dense", "subsample"])
def test_signatures_of_resnet_utils_are_slims(name):
    assert parameters(getattr(resnet_utils, name)) == parameters(getattr(slim_resnet_utils, name))


def test_block_has_slims_fields_and_default_image_size_is_slims():
    assert resnet_utils.Block._fields == slim_resnet_utils.Block._fields
    assert resnet_v2.resnet_v2.default_image_size == slim_resnet_v2.resnet_v2.default_image_size


def test_a_positional_call_in_tf_slims_order_is_understood(monkeypatch):
    """Without units, which say nothing about it, and take long to build."""
    no_units = slim.add_arg_scope(lambda net, *_, **__: net)
    for utils in (resnet_utils, slim_resnet_utils):
        monkeypatch.setattr(utils, "stack_blocks_dense", no_units)
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.float32, [1, 64, 64, 3])
        names = []
        for nets in (slim_resnet_v2, resnet_v2):
            for reuse in (None, True):
                logits, _ = nets.resnet_v2_50(images, 5, False, True, None, reuse, nets.__name__)
                assert logits.shape.as_list() == [1, 1, 1, 5]
                names.append(logits.op.name.partition("/")[0])
    assert [name.partition(".")[0] for name in names] == ["tf_slim"] * 2 + ["models"] * 2


def test_units_may_be_given_as_tuples():
    def build(args):
        with tf.Graph().as_default():
            block = resnet_utils.Block("block1", resnet_v2.bottleneck, args)
            net = resnet_utils.stack_blocks_dense(tf.zeros([1, 8, 8, 4]), [block])
            return net.shape.as_list(), [(v.name, v.shape) for v in tf1.global_variables()]

    unit = {"depth": 16, "depth_bottleneck": 4}
    assert build([(16, 4, 1), (16, 4, 2)]) == build([unit | {"stride": 1}, unit | {"stride": 2}])
    assert build([(16, 4, 1), (16, 4, 2)])[0] == [1, 4, 4, 16]


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("rate", [1, 2])
def test_conv2d_same_picks_from_the_convolution_without_stride(size, rate):
    images = np.random.default_rng(7).normal(size=(1, size, size, 2)).astype(np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        dense = resnet_utils.conv2d_same(images, 3, 3, stride=1, rate=rate, scope="conv")
        tf1.get_variable_scope().reuse_variables()
        # slim's layer has no stride with a rate.
        stride = 2 if rate == 1 else 1
        strided = resnet_utils.conv2d_same(images, 3, 3, stride=stride, rate=rate, scope="conv")
        picked = resnet_utils.subsample(dense, stride)
        session.run(tf1.global_variables_initializer())
        dense_value, strided_value, picked_value = session.run([dense, strided, picked])
    np.testing.assert_allclose(strided_value, dense_value[:, ::stride, ::stride], atol=1e-5)
    np.testing.assert_array_equal(picked_value, dense_value[:, ::stride, ::stride])
