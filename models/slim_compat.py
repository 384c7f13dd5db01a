"""tf-slim 1.1.0 on today's TensorFlow; the only module that knows where the two do not fit.

Code that uses tf-slim writes `from models.slim_compat import slim`. That import makes `tf_slim`
itself work too, with its layers and its networks (`tf_slim.nets`) unchanged.
"""

import importlib
import sys
import types
import warnings
from typing import Any

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

__all__ = ["slim"]

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
vars(importlib.import_module("tf_slim.layers.layers"))["ops"] = _OpsForSlimLayers()
