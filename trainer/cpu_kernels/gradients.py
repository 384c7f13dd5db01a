"""Gradients on CPUs: by compiled operations of this project, where those take less time.

A graph is built with the gradients by filters and biases, and with those of batch normalization
(BN) and of the ReLU behind it. Gradients by the inputs of convolutions are TensorFlow's here; the
optimizer of graphs, see `library`, replaces them as it does convolutions. With a matrix unit (AMX)
all that is of convolutions of bfloat16 stays TensorFlow's.

Gradients of low precision are sums of float32 in any case. On CPUs TensorFlow's own bias gradient
adds up bfloat16 as such, and makes 256 of 1,000 ones; so does, where oneDNN has no such type, its
gradient by filters within blocks, which makes 2,560 of 3,600 ones.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.cpu_kernels import library

_DTYPES = (tf.float32, tf.bfloat16)
_LOW_PRECISION = (tf.bfloat16, tf.float16)
_CHANNELS_OF_FILTERS = 32
_CHANNELS_OF_SUMS = 16
_BIAS, _CONVOLUTION, _NORM = (f"{name}OnCpu" for name in ("BiasAdd", "Conv2D", "FusedBatchNorm"))


@contextlib.contextmanager
def overridden() -> Iterator[None]:
    """Gives layers built inside these gradients, unless steps run on a GPU.

    Those by compiled operations have no gradients themselves.
    """
    names: dict[str, str] = {}
    if not tf.config.list_physical_devices("GPU"):
        names |= {"BiasAdd": _BIAS, "Conv2D": _CONVOLUTION}
    if library.find() is not None:
        names["FusedBatchNormV3"] = _NORM
    with tf1.get_default_graph().gradient_override_map(names):
        yield


class _Geometry(NamedTuple):
    """Properties of a convolution that the gradient by a filter has to know, beside its tensors.

    Attributes:
      kernel_size: height and width of the filter, pixels.
      padding: pixels before the first row and before the first column.
      stride: pixels from one position of the filter to the next, down and across.
    """

    kernel_size: list[int]
    padding: list[int]
    stride: int


def _find_geometry(op: tf.Operation) -> _Geometry | None:
    """Returns a convolution's geometry; None where the operation can't compute its gradient."""
    inputs, filters = op.inputs
    height, width = filters.shape[:2]
    stride, stride_across = op.get_attr("strides")[1:3]
    is_known = (
        inputs.dtype in _DTYPES
        and op.get_attr("data_format") == b"NHWC"
        and op.get_attr("dilations") == [1, 1, 1, 1]
        and stride == stride_across
        and inputs.shape.is_fully_defined()
        and inputs.shape[3] == filters.shape[2]  # There are no groups.
        and op.outputs[0].shape.num_elements() > 0
        and all(channels % _CHANNELS_OF_FILTERS == 0 for channels in filters.shape[2:])
    )
    if not is_known:
        return None
    match op.get_attr("padding"):
        case b"VALID":
            padding = [0, 0]
        case b"SAME":
            outputs = op.outputs[0].shape
            missing = [
                max(0, (outputs[axis] - 1) * stride + size - inputs.shape[axis])
                for axis, size in ((1, height), (2, width))
            ]
            padding = [pixels // 2 for pixels in missing]
        case _:
            padding = op.get_attr("explicit_paddings")[2:6:2]
    return _Geometry([height, width], padding, stride)


@tf.RegisterGradient(_CONVOLUTION)
def _conv2d_gradient(op: tf.Operation, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    inputs, filters = op.inputs
    dtype = inputs.dtype
    compiled = library.find()
    takes_it = compiled is not None and not library.reason_for_no_convolutions(dtype)
    geometry = _find_geometry(op) if takes_it else None
    if geometry is None and not library.sums_in_float32(dtype):
        inputs, filters, gradient = (tf.cast(x, tf.float32) for x in (inputs, filters, gradient))
    settings = {
        name: op.get_attr(name)
        for name in ("strides", "padding", "dilations", "explicit_paddings", "data_format")
    }
    of_inputs = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(inputs), filter=filters, out_backprop=gradient, **settings
    )
    if geometry is None:
        of_filters = tf.raw_ops.Conv2DBackpropFilter(
            input=inputs, filter_sizes=tf.shape(filters), out_backprop=gradient, **settings
        )
    else:
        of_filters = compiled.slim_horovod_filter_gradient(
            inputs=inputs, gradient=gradient, **geometry._asdict()
        )
    return tf.cast(of_inputs, dtype), tf.cast(of_filters, dtype)


def _can_be_summed(tensor: tf.Tensor) -> bool:
    """Returns whether the kernels can sum a tensor over all dimensions but the channels."""
    channels = (tensor.shape[-1] if tensor.shape.rank else 0) or 0
    return tensor.dtype in _DTYPES and channels > 0 and channels % _CHANNELS_OF_SUMS == 0


def _before_relu(gradient: tf.Tensor, features: tf.Tensor) -> tf.Tensor | None:
    """Returns the gradient by relu(features) if `gradient` is what a ReLU made of it, or None."""
    made_by = gradient.op
    if made_by.type != "ReluGrad":
        return None
    by_relu, result = made_by.inputs
    is_of_features = result.op.type == "Relu" and result.op.inputs[0].ref() == features.ref()
    return by_relu if is_of_features else None


@tf.RegisterGradient(_NORM)
def _batch_norm_gradient(
    op: tf.Operation, gradient: tf.Tensor, *of_statistics: tf.Tensor
) -> tuple[tf.Tensor | None, ...]:
    del of_statistics  # They have none.
    inputs, scale, offset, *moving = op.inputs
    is_training = op.get_attr("is_training")
    mean, variance = op.outputs[3:5] if is_training else moving
    epsilon, data_format = op.get_attr("epsilon"), op.get_attr("data_format")
    if is_training and data_format == b"NHWC" and _can_be_summed(inputs):
        # The kernel does the ReLU's part in passing; the ReluGrad, which nothing needs, won't run.
        by_relu = _before_relu(gradient, op.outputs[0])
        gradients = library.find().slim_horovod_norm_gradient(
            gradient=gradient if by_relu is None else by_relu,
            inputs=inputs,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            addends=[],
            epsilon=epsilon,
            relu=by_relu is not None,
        )
    else:
        gradients = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=gradient,
            x=inputs,
            scale=scale,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=op.outputs[5],
            epsilon=epsilon,
            data_format=data_format,
            is_training=is_training,
        )
    return *gradients[:3], None, None


@tf.RegisterGradient(_BIAS)
def _bias_gradient(op: tf.Operation, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    data_format = op.get_attr("data_format")
    compiled = library.find()
    if compiled is not None and data_format == b"NHWC" and _can_be_summed(gradient):
        return gradient, compiled.slim_horovod_bias_gradient(gradient=gradient)
    exact = tf.cast(gradient, tf.float32) if gradient.dtype in _LOW_PRECISION else gradient
    summed = tf.raw_ops.BiasAddGrad(out_backprop=exact, data_format=data_format)
    return gradient, tf.cast(summed, gradient.dtype)
