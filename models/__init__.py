"""Networks: arguments in, tensors out. No flags, no Horovod, no training.

A network is a function. Those of this package are found by their names, all others as
`package.module:function`:

    # my_nets.py, in the current folder or installed: --model=my_nets:tiny
    import tensorflow as tf

    from models.slim_compat import slim

    def tiny(images, num_classes, is_training):
        with slim.arg_scope([slim.batch_norm], is_training=is_training):
            net = slim.conv2d(images, 16, [3, 3], stride=2, scope="conv1")  # And BN, and ReLU.
        net = slim.flatten(slim.avg_pool2d(net, net.shape[1:3], scope="pool"))
        net = tf.cast(net, tf.float32)
        logits = slim.fully_connected(net, num_classes, activation_fn=None, scope="logits")
        return logits, {"pool": net}

    tiny.minimum_image_size = 8  # pixels; may be left out, as may default_image_size

It is called as `function(images, num_classes=..., is_training=...)`: images are float32, bfloat16
or float16 [batch, height, width, 3], scaled as --preprocessing says, of a known height and width;
the other two are an int and a bool. It returns `(logits, end_points)`: logits [batch, num_classes],
before the softmax, and a dict of named tensors, which may be empty. Logits are to be float32: the
last layer gets `tf.cast(net, tf.float32)`, and with it the float32 variables. Others are accepted,
and in low precision several logits of an example are often equal. It may be called again in the
same graph, to share its variables: so these have to be made by slim or by
`tf.compat.v1.get_variable`, and every layer has to state its scope. The scope of the layer that
makes the logits is `logits`, or ends with `/logits`: it tells how many classes a checkpoint has,
and --init_checkpoint leaves it out where the data has another number.

The caller enters `slim.arg_scope(network.arg_scope_fn(weight_decay=..., is_training=..., ...))`
around the call: in it slim's convolutions have BN and ReLU by default, and BN has its mode, decay
and epsilon. `arg_scope_fn` is `resnet_arg_scope`, unless the function has an attribute of that
name, with the same arguments. Weight decay is added outside, to every trainable variable that is
named `weights`, as slim names the kernels of convolutions and of fully connected layers; the arg
scope gets 0. A layer that is not slim's has to add its update ops, and other losses that it wants,
to the graph's collections UPDATE_OPS and REGULARIZATION_LOSSES itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from models import plug_in, resnet_v2
from models.arg_scopes import resnet_arg_scope

__all__ = [
    "NAMES",
    "Network",
    "UnknownModelError",
    "check_image_size",
    "get",
    "is_kernel_of_head",
    "is_of_head",
    "resnet_arg_scope",
]

NetworkFn = Callable[..., tuple[tf.Tensor, dict[str, tf.Tensor]]]

_NETWORKS: dict[str, NetworkFn] = {
    "resnet_v2_50": resnet_v2.resnet_v2_50,
    "resnet_v2_101": resnet_v2.resnet_v2_101,
    "resnet_v2_152": resnet_v2.resnet_v2_152,
    "resnet_v2_200": resnet_v2.resnet_v2_200,
    "keras_resnet_v2_50": resnet_v2.keras_resnet_v2_50,
    "keras_resnet_v2_101": resnet_v2.keras_resnet_v2_101,
    "keras_resnet_v2_152": resnet_v2.keras_resnet_v2_152,
}
NAMES = tuple(_NETWORKS)
# The scope of the layer that makes the logits, within a name.
_HEAD = "/logits/"


class UnknownModelError(ValueError):
    """A name that no network has. The message is one line: what was looked for, and where."""


class Network(NamedTuple):
    """A network and what its caller has to know.

    Attributes:
      name: the name that `get` was called with.
      fn: the function, as the module's docstring describes it.
      arg_scope_fn: the function that makes the arg scope in which `fn` has to be called.
      default_image_size: the height and width that the network was made for, pixels.
      minimum_image_size: the least height and width that the network can work with, pixels.
    """

    name: str
    fn: NetworkFn
    arg_scope_fn: Callable[..., dict[str, dict[str, Any]]]
    default_image_size: int
    minimum_image_size: int


def get(name: str) -> Network:
    """Finds a network.

    Args:
      name: the network's name: one of `NAMES`, or `package.module:function`.

    Raises:
      UnknownModelError: no network has that name.
    """
    fn = _NETWORKS[name] if name in _NETWORKS else _import_function(name)
    return Network(
        name=name,
        fn=fn,
        arg_scope_fn=getattr(fn, "arg_scope_fn", resnet_arg_scope),
        default_image_size=getattr(fn, "default_image_size", 224),
        minimum_image_size=getattr(fn, "minimum_image_size", 1),
    )


def check_image_size(network: Network, image_size: int) -> None:
    """Refuses images that are too small for a network.

    Args:
      network: the network, as `get` returns it.
      image_size: the images' height and width, pixels.

    Raises:
      ValueError: `image_size` is less than `network.minimum_image_size`.
    """
    if image_size < network.minimum_image_size:
        raise ValueError(
            f"must be at least {network.minimum_image_size} for {network.name}, got {image_size}"
        )


def is_of_head(variable: str) -> bool:
    """Returns whether the variable of a name belongs to the layer that makes the logits."""
    return _HEAD in f"/{variable}"


def is_kernel_of_head(variable: str) -> bool:
    """Returns whether the variable of a name is the kernel of that layer: [..., num_classes]."""
    return f"/{variable}".endswith(f"{_HEAD}weights")


def _import_function(name: str) -> NetworkFn:
    """Imports the function that `package.module:function` names."""
    try:
        return plug_in.load(name)
    except plug_in.PlugInNameError as error:
        fault = f"must be one of {', '.join(NAMES)}, or package.module:function"
        if name.startswith("."):  # Not the misspelt name of a network: the list would not help.
            fault = f"cannot import module {name.partition(':')[0]} (a relative name)"
        raise UnknownModelError(f"{fault}, got {name!r}") from error
    except plug_in.PlugInError as error:
        raise UnknownModelError(f"{error}, got {name!r}") from error
