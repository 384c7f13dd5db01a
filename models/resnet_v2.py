"""Residual networks with pre-activation, arXiv:1603.05027, as in slim's nets.

Names of variables and end points, signatures and results are those of slim's `resnet_v2`, so that
its checkpoints load. The unit with stride 2 is the last of its block, not the first.

    with slim.arg_scope(resnet_v2.resnet_arg_scope()):
        logits, end_points = resnet_v2.resnet_v2_50(images, num_classes=1000, is_training=False)

The networks `keras_resnet_v2_*` are those of `keras.applications.ResNet50V2` and so on, which
differ from slim's in the first pool alone (`first_pool`), and in BN's epsilon, 1.001e-5, which the
arg scope sets. Their variables have slim's names and shapes, and also slim's scope
(`resnet_v2_50/...`): so the same weights can be loaded into either, as fine-tuning and comparisons
want. As they are they predict rightly in the network that they were trained in alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from models import resnet_utils
from models.arg_scopes import resnet_arg_scope, training_mode
from models.slim_compat import slim

tf1 = tf.compat.v1
_LOW_PRECISION = (tf.bfloat16, tf.float16)

__all__ = [
    "bottleneck",
    "first_pool",
    "keras_resnet_v2_50",
    "keras_resnet_v2_101",
    "keras_resnet_v2_152",
    "resnet_arg_scope",
    "resnet_v2",
    "resnet_v2_50",
    "resnet_v2_101",
    "resnet_v2_152",
    "resnet_v2_200",
    "resnet_v2_block",
]


@slim.add_arg_scope
def bottleneck(
    inputs: tf.Tensor,
    depth: int,
    depth_bottleneck: int,
    stride: int,
    rate: int = 1,
    outputs_collections: Any = None,
    scope: str | None = None,
) -> tf.Tensor:
    """Adds a residual unit: BN and ReLU, then 1x1, 3x3 and 1x1 convolutions, plus the shortcut.

    Args:
      inputs: a map [batch, height, width, channels].
      depth: the number of channels of the result.
      depth_bottleneck: the number of channels of the first two convolutions.
      stride: the stride of the 3x3 convolution and of the shortcut, pixels.
      rate: the distance of the 3x3 kernel's taps, pixels.
      outputs_collections: the graph collection, or collections, to which the result is added.
      scope: the name of the variable scope.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), depth].
    """
    with tf1.variable_scope(scope, "bottleneck_v2", [inputs]) as unit_scope:
        preact = slim.batch_norm(inputs, activation_fn=tf.nn.relu, scope="preact")
        # The two summands, shortcut and last convolution, have no BN or ReLU of their own: the next
        # unit normalizes the sum.
        plain = {"normalizer_fn": None, "activation_fn": None}
        if depth == slim.utils.last_dimension(inputs.shape, min_rank=4):
            shortcut = resnet_utils.subsample(inputs, stride, "shortcut")
        else:
            shortcut = slim.conv2d(preact, depth, 1, stride=stride, scope="shortcut", **plain)
        residual = slim.conv2d(preact, depth_bottleneck, 1, stride=1, scope="conv1")
        residual = resnet_utils.conv2d_same(
            residual, depth_bottleneck, 3, stride, rate=rate, scope="conv2"
        )
        residual = slim.conv2d(residual, depth, 1, stride=1, scope="conv3", **plain)
        return slim.utils.collect_named_outputs(
            outputs_collections, unit_scope.name, shortcut + residual
        )


@slim.add_arg_scope
def first_pool(net: tf.Tensor, pads_with_zeros: bool = False) -> tf.Tensor:
    """Adds the 3x3 max pool with stride 2 behind the first convolution.

    Args:
      net: a map [batch, height, width, channels].
      pads_with_zeros: whether the map first gets a row or column of zeros on every side, as in
        Keras. They are pixels as all others, and win where those are negative: BN and ReLU come
        later. Otherwise the padding is the arg scope's. slim's, SAME, lets windows begin at the
        first pixel of a map of even size, and end beyond the last, where there is nothing.

    Returns:
      [batch, ceil(height / 2), ceil(width / 2), channels].
    """
    if not pads_with_zeros:
        return slim.max_pool2d(net, [3, 3], stride=2, scope="pool1")
    net = tf.pad(net, [[0, 0], [1, 1], [1, 1], [0, 0]], name="pool1_pad")
    return slim.max_pool2d(net, [3, 3], stride=2, padding="VALID", scope="pool1")


def _root_block(net: tf.Tensor) -> tf.Tensor:
    """Adds a 7x7 convolution and a max pool, to a quarter of the images' height and width."""
    with slim.arg_scope([slim.conv2d], activation_fn=None, normalizer_fn=None):
        net = resnet_utils.conv2d_same(net, 64, 7, stride=2, scope="conv1")
    return first_pool(net)


def _stride_after_root_block(output_stride: int | None) -> int | None:
    """Returns what the blocks may add to the stride of 4 that the root block has."""
    if output_stride is None:
        return None
    if output_stride % 4 != 0:
        raise ValueError(f"output_stride: must be a multiple of 4, got {output_stride}")
    return output_stride // 4


def _head(
    net: tf.Tensor, num_classes: int | None, *, global_pool: bool
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Adds the mean over all pixels and the layer of the logits, as far as they are wanted.

    They are float32 in every precision: of logits that are rounded to bfloat16, several are often
    equal and the highest.

    Returns:
      logits or features, and the end point `global_pool`.
    """
    if net.dtype in _LOW_PRECISION:
        net = tf.cast(net, tf.float32)
    pooled = {}
    if global_pool:
        net = tf.reduce_mean(net, [1, 2], keepdims=True, name="pool5")
        pooled["global_pool"] = net
    if num_classes:
        plain = {"normalizer_fn": None, "activation_fn": None}
        net = slim.conv2d(net, num_classes, [1, 1], scope="logits", **plain)
    return net, pooled


def resnet_v2(
    inputs: tf.Tensor,
    blocks: Sequence[resnet_utils.Block],
    num_classes: int | None = None,
    is_training: bool = True,
    global_pool: bool = True,
    output_stride: int | None = None,
    include_root_block: bool = True,
    spatial_squeeze: bool | None = True,
    reuse: Any = None,
    scope: Any = None,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Builds a network of the given blocks.

    slim has had two orders of arguments: `tf_slim.nets` has no `spatial_squeeze`, and its logits
    keep their height and width of 1. A call with the name of a scope in the place of `reuse` is
    taken for one in that order.

    Args:
      inputs: images [batch, height, width, 3], or any map where `include_root_block` is False.
        Where they are bfloat16 or float16, so are all layers but the last: logits, or the features
        that take their place, are computed and returned in float32.
      blocks: the stages, in order.
      num_classes: the number of logits. None or 0: no logits, and the features are the result.
      is_training: whether BN uses the batch's statistics, and updates the moving ones.
      global_pool: whether to average over height and width.
      output_stride: the ratio of `inputs`' height to the last map's. None: the product of all
        strides, 32 for the networks below. A smaller one makes convolutions atrous, for dense
        prediction.
      include_root_block: whether to begin with `conv1` and `pool1`.
      spatial_squeeze: whether pooled logits lose their height and width of 1.
      reuse: whether to use the variables that exist already in `scope`.
      scope: the name of the variable scope.

    Returns:
      logits [batch, num_classes], before the softmax; [batch, 1, 1, num_classes] without
      `spatial_squeeze`, [batch, height_out, width_out, num_classes] without `global_pool`. And the
      end points: each convolution's, unit's and block's result under the name of its scope,
      `global_pool`, and `predictions`, the softmax of the logits.

    Raises:
      ValueError: the blocks cannot give `output_stride`.
    """
    if isinstance(reuse, str | tf1.VariableScope):
        spatial_squeeze, reuse, scope = False, spatial_squeeze, reuse
    with tf1.variable_scope(scope, "resnet_v2", [inputs], reuse=reuse) as network_scope:
        collection = network_scope.original_name_scope + "_end_points"
        with (
            slim.arg_scope(
                [slim.conv2d, bottleneck, resnet_utils.stack_blocks_dense],
                outputs_collections=collection,
            ),
            slim.arg_scope([slim.batch_norm], is_training=training_mode(is_training)),
        ):
            net = inputs
            if include_root_block:
                net = _root_block(net)
                output_stride = _stride_after_root_block(output_stride)
            net = resnet_utils.stack_blocks_dense(net, blocks, output_stride)
            net = slim.batch_norm(net, activation_fn=tf.nn.relu, scope="postnorm")
            net, pooled = _head(net, num_classes, global_pool=global_pool)
        end_points = slim.utils.convert_collection_to_dict(collection) | pooled
        if num_classes:
            if spatial_squeeze and global_pool:
                net = tf.squeeze(net, [1, 2], name="SpatialSqueeze")
                end_points[network_scope.name + "/spatial_squeeze"] = net
            end_points["predictions"] = slim.softmax(net, scope="predictions")
        return net, end_points


resnet_v2.default_image_size = 224  # type: ignore[attr-defined]  # slim's nets have it there


def resnet_v2_block(scope: str, base_depth: int, num_units: int, stride: int) -> resnet_utils.Block:
    """Returns a stage of `num_units` bottleneck units, the last of which has the stride.

    Args:
      scope: the name of the stage's variable scope.
      base_depth: the number of channels within the bottleneck; the units' results have four times
        as many.
      num_units: the number of units.
      stride: the stride of the stage, pixels.
    """
    strides = [1] * (num_units - 1) + [stride]
    return resnet_utils.Block(
        scope,
        bottleneck,
        [
            {
                "depth": 4 * base_depth,
                "depth_bottleneck": base_depth,
                "stride": unit_stride,
            }
            for unit_stride in strides
        ],
    )


def _create_network(
    scope_name: str, units: tuple[int, int, int, int], *, is_of_keras: bool = False
) -> Callable[..., tuple[tf.Tensor, dict[str, tf.Tensor]]]:
    """Returns a network function.

    Args:
      scope_name: the name of slim's network, and of the scope.
      units: the number of units of its four stages.
      is_of_keras: whether it has Keras' first pool; `keras_` comes before its name then.
    """

    def network(
        inputs: tf.Tensor,
        num_classes: int | None = None,
        is_training: bool = True,
        global_pool: bool = True,
        output_stride: int | None = None,
        spatial_squeeze: bool | None = True,
        reuse: Any = None,
        scope: Any = scope_name,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        blocks = [
            resnet_v2_block("block1", base_depth=64, num_units=units[0], stride=2),
            resnet_v2_block("block2", base_depth=128, num_units=units[1], stride=2),
            resnet_v2_block("block3", base_depth=256, num_units=units[2], stride=2),
            resnet_v2_block("block4", base_depth=512, num_units=units[3], stride=1),
        ]
        with slim.arg_scope([first_pool], pads_with_zeros=is_of_keras):
            return resnet_v2(
                inputs,
                blocks,
                num_classes,
                is_training=is_training,
                global_pool=global_pool,
                output_stride=output_stride,
                include_root_block=True,
                spatial_squeeze=spatial_squeeze,
                reuse=reuse,
                scope=scope,
            )

    name = f"keras_{scope_name}" if is_of_keras else scope_name
    network.__name__ = network.__qualname__ = name
    network.__doc__ = f"{name}: stages of {units} units. Arguments and results: see `resnet_v2`."
    # Images smaller than the total stride, 32, would leave the last stages maps of one pixel.
    vars(network).update(default_image_size=224, minimum_image_size=32)
    return network


resnet_v2_50 = _create_network("resnet_v2_50", (3, 4, 6, 3))
resnet_v2_101 = _create_network("resnet_v2_101", (3, 4, 23, 3))
resnet_v2_152 = _create_network("resnet_v2_152", (3, 8, 36, 3))
resnet_v2_200 = _create_network("resnet_v2_200", (3, 24, 36, 3))
keras_resnet_v2_50 = _create_network("resnet_v2_50", (3, 4, 6, 3), is_of_keras=True)
keras_resnet_v2_101 = _create_network("resnet_v2_101", (3, 4, 23, 3), is_of_keras=True)
keras_resnet_v2_152 = _create_network("resnet_v2_152", (3, 8, 36, 3), is_of_keras=True)
