"""Activations of low precision, with float32 master variables."""

from collections.abc import Callable, Set
from typing import Any

import tensorflow as tf

from trainer.cpu_kernels import library


def describe_slowness(precision: str, cpu_flags: Set[str]) -> tuple[str, ...]:
    """Returns a line where the CPU lacks the instructions of a precision.

    Args:
      precision: the value of --precision.
      cpu_flags: the CPU's flags, as Linux names them.
    """
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if has_gpu or not library.lacks_instructions(compute_dtype(precision), cpu_flags):
        return ()
    return (
        f"--precision={precision}: this CPU has no instructions for it, and is faster in float32",
    )


def compute_dtype(precision: str) -> tf.DType:
    """Returns the type of activations and convolutions for a value of --precision."""
    return tf.dtypes.as_dtype(precision)


def create_variable_getter(dtype: tf.DType) -> Callable[..., Any]:
    """Returns a variable getter that keeps float32 masters where a layer asks for `dtype`.

    Layers ask for variables of their input's type. This getter stores them as float32 and returns a
    cast, so that a checkpoint is the same in every precision, updates too small for `dtype` are not
    lost, and gradients arrive in float32 through the cast.
    """

    def get_variable(getter: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if dtype == tf.float32 or kwargs["dtype"] != dtype:
            return getter(*args, **kwargs)
        kwargs["dtype"] = tf.float32
        master = getter(*args, **kwargs)
        with tf.name_scope(f"{master.op.name}/"):  # There may be none where a layer asks for it.
            return tf.cast(master, dtype)

    return get_variable
