"""tf-slim 1.1.0 on today's TensorFlow; the only module that knows where the two do not fit.

Code that uses tf-slim writes `from models.slim_compat import slim`. That import makes `tf_slim`
itself work too, with its layers and its networks (`tf_slim.nets`) unchanged.
"""

import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import ops as framework_ops


class _ScikitLearnMetrics(types.ModuleType):
    """The module sklearn.metrics, loaded when something in it is used.

    tf_slim loads it for a loss that clusters, and takes 1 to 2 s longer for that where it is
    installed.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


_METRICS = _ScikitLearnMetrics("sklearn.metrics")
try:
    sys.modules.setdefault(_METRICS.__name__, _METRICS)
    import tf_slim as slim
finally:
    if sys.modules.get(_METRICS.__name__) is _METRICS:
        del sys.modules[_METRICS.__name__]

__all__ = ["BatchNormChanges", "batch_norm_changed", "compared_as_objects", "slim"]

# slim builds its layers with functions that TensorFlow still has and calls deprecated: a user of
# this program could do nothing about the warnings.
warnings.filterwarnings("ignore", "`(layer.apply|tf.layers.flatten)` is deprecated", UserWarning)


class _GraphKeys(tf.compat.v1.GraphKeys):  # type: ignore[misc]  # TensorFlow has no types
    """TensorFlow's graph keys, with an UPDATE_OPS that is equal but another object."""

    UPDATE_OPS = tf.compat.v1.GraphKeys.UPDATE_OPS.encode().decode()


class _OpsForSlimLayers:
    """A view of `tensorflow.python.framework.ops` for `tf_slim.layers.layers`."""

    GraphKeys = _GraphKeys

    def __getattr__(self, name: str) -> Any:
        return getattr(framework_ops, name)


# Some of slim's functions ask isinstance(x, ops.Tensor), a class that TensorFlow has moved.
framework_ops.Tensor = tf.Tensor

# slim.batch_norm calls a Keras class that needs a package of its own (tf_keras), but only where
# `updates_collections is ops.GraphKeys.UPDATE_OPS`, the very object. With this view that is never
# so, and slim takes its own fused implementation. The update ops are in UPDATE_OPS all the same,
# since a graph finds a collection by equality.
_slim_layers = vars(importlib.import_module("tf_slim.layers.layers"))
_slim_layers["ops"] = _OpsForSlimLayers()


@contextlib.contextmanager
def compared_as_objects() -> Iterator[None]:
    """Makes tensors and variables compare, and hash, as objects while a graph is built inside.

    In a graph they are anyway; but each time TensorFlow finds out first where it is. A layer of
    convolution, of those that slim builds on, puts all variables up to then into a set:
    resnet_v2_50 and its evaluation ask 58,000 times.
    """
    tf.compat.v1.disable_tensor_equality()
    try:
        yield
    finally:
        tf.compat.v1.enable_tensor_equality()


class BatchNormChanges(NamedTuple):
    """Changes to the layers of BN that slim builds.

    Attributes:
      is_frozen: function that returns whether the layer of a variable scope, by its name, uses its
        moving statistics, and leaves them as they are, also where the network is trained.
      normalize_fn: function in place of `tf.compat.v1.nn.fused_batch_norm` where a layer uses the
        batch's statistics: (inputs, gamma, beta, epsilon=, data_format=) -> outputs, mean and
        unbiased variance. None: that one.
    """

    is_frozen: Callable[[str], bool]
    normalize_fn: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]] | None = None


@contextlib.contextmanager
def batch_norm_changed(changes: BatchNormChanges) -> Iterator[None]:
    """Changes the layers of BN that slim's fused implementation builds inside."""
    fused, own_nn = _slim_layers["_fused_batch_norm"], _slim_layers["nn"]

    def build(*args: Any, scope: Any = None, **kwargs: Any) -> Any:
        name = scope if isinstance(scope, str) else getattr(scope, "name", "BatchNorm")
        around = tf.compat.v1.get_variable_scope().name
        is_absolute = scope is not None and not isinstance(scope, str)
        if changes.is_frozen(name if is_absolute else f"{around}/{name}".lstrip("/")):
            kwargs["is_training"] = False
        return fused(*args, scope=scope, **kwargs)

    _slim_layers["_fused_batch_norm"] = build
    if changes.normalize_fn is not None:
        _slim_layers["nn"] = _NnForSlimLayers(own_nn, changes.normalize_fn)
    try:
        yield
    finally:
        _slim_layers["_fused_batch_norm"], _slim_layers["nn"] = fused, own_nn


class _NnForSlimLayers:
    """A view of the module `nn` for `tf_slim.layers.layers`, with another training mode of BN."""

    def __init__(self, own_nn: Any, normalize_fn: Callable[..., Any]) -> None:
        self._own_nn = own_nn
        self._normalize_fn = normalize_fn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own_nn, name)

    def fused_batch_norm(self, *args: Any, is_training: bool = True, **kwargs: Any) -> Any:
        if is_training:
            return self._normalize_fn(*args, **kwargs)
        return self._own_nn.fused_batch_norm(*args, is_training=is_training, **kwargs)
