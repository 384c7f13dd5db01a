"""Activations of low precision, with float32 master variables."""

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

# Of an x86 CPU's flags, those of which one is needed to compute with a type at speed. With AVX-512
# alone, oneDNN computes in float32.
_INSTRUCTIONS = {"bfloat16": {"avx512f"}, "float16": {"avx512_fp16", "amx_fp16"}}


def describe_slowness(precision: str, cpu_flags: Iterable[str]) -> tuple[str, ...]:
    """Returns a line where the CPU lacks the instructions of a precision.

    Args:
      precision: the value of --precision.
      cpu_flags: the CPU's flags, as Linux names them.
    """
    flags = set(cpu_flags)
    is_known_to_lack = "sse2" in flags and not flags & _INSTRUCTIONS.get(precision, flags)
    if not is_known_to_lack or tf.config.list_physical_devices("GPU"):
        return ()
    return (
        f"--precision={precision}: this CPU has no instructions for it; steps take many times as "
        "long as in float32",
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
        return tf.cast(getter(*args, **kwargs), dtype)

    return get_variable
