// The names, inputs, outputs and attributes of the operations, and what computes each.
//
// All of them are compiled at once: TensorFlow's headers take longer than the rest.

#include <vector>

#include "bias_gradient_operation.h"
#include "convolution_operation.h"
#include "decayed_gradient_operation.h"
#include "filter_gradient_operation.h"
#include "norm_gradient_operation.h"
#include "norm_operation.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// A convolution of stride 1 with a filter [size, size, in_channels, out_channels], size 1 or 3, and
// this padding: top, bottom, left, right; inputs: [batch, height, width, in_channels]. Then comes
// `bias`, [out_channels], or `norm`, which is BN's scale, offset, mean and variance, each
// [out_channels]; then, at size 1, an addend of the result's shape; and with `relu`, ReLU. Or,
// `is_gradient`, the gradient by the inputs of a convolution whose filter is [size, size,
// out_channels, in_channels], and each of whose paddings is size - 1 less this one.
REGISTER_OP("SlimHorovodConvolution")
    .Input("inputs: T")
    .Input("filter: T")
    .Input("bias: num_bias * T")
    .Input("norm: num_norm * float")
    .Input("addends: num_addends * T")
    .Attr("T: {bfloat16, float}")
    .Attr("num_bias: int >= 0")
    .Attr("num_norm: int >= 0")
    .Attr("num_addends: int >= 0")
    .Attr("padding: list(int)")
    .Attr("is_gradient: bool = false")
    .Attr("epsilon: float = 0")
    .Attr("relu: bool = false")
    .Output("result: T")
    .SetShapeFn([](InferenceContext* context) {
      std::vector<int> padding;
      bool is_gradient;
      TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
      TF_RETURN_IF_ERROR(context->GetAttr("is_gradient", &is_gradient));
      ShapeHandle inputs, filter;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, &inputs));
      TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 4, &filter));
      if (padding.size() != 4) return absl::InvalidArgumentError("padding must be that of 4 sides");
      DimensionHandle less, sizes[2];
      TF_RETURN_IF_ERROR(context->Subtract(context->Dim(filter, 0), 1, &less));
      for (int i = 0; i < 2; ++i) {
        sizes[i] = context->Dim(inputs, 1 + i);
        for (int side : {padding[2 * i], padding[2 * i + 1]}) {
          const bool is_cut = side < 0;  // By an explicit padding of more than the filter.
          TF_RETURN_IF_ERROR(is_cut ? context->Subtract(sizes[i], -side, &sizes[i])
                                    : context->Add(sizes[i], side, &sizes[i]));
        }
        TF_RETURN_IF_ERROR(context->Subtract(sizes[i], less, &sizes[i]));
      }
      context->set_output(0, context->MakeShape({context->Dim(inputs, 0), sizes[0], sizes[1],
                                                 context->Dim(filter, is_gradient ? 2 : 3)}));
      return absl::OkStatus();
    });

// inputs: [batch, height, width, in_channels], of a convolution; gradient: by its result, [batch,
// out_height, out_width, out_channels]; padding: before the first row and column.
REGISTER_OP("SlimHorovodFilterGradient")
    .Input("inputs: T")
    .Input("gradient: T")
    .Attr("T: {bfloat16, float}")
    .Attr("kernel_size: list(int)")
    .Attr("padding: list(int)")
    .Attr("stride: int")
    .Output("filter_gradient: T")
    .SetShapeFn([](InferenceContext* context) {
      std::vector<int> size;
      TF_RETURN_IF_ERROR(context->GetAttr("kernel_size", &size));
      context->set_output(0,
                          context->MakeShape({size[0], size[1], context->Dim(context->input(0), 3),
                                              context->Dim(context->input(1), 3)}));
      return absl::OkStatus();
    });

// gradient: [..., channels].
REGISTER_OP("SlimHorovodBiasGradient")
    .Input("gradient: T")
    .Attr("T: {bfloat16, float}")
    .Output("bias_gradient: T")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->Vector(context->Dim(context->input(0), -1)));
      return absl::OkStatus();
    });

// gradient: by BN's result, or, with `relu`, by the result of the ReLU behind it; inputs: of BN,
// [batch, height, width, channels]; addends: none, or one such, which is added to inputs_gradient;
// sums: of inputs_gradient, for each channel, or, without `with_sums`, []; the others: [channels].
REGISTER_OP("SlimHorovodNormGradient")
    .Input("gradient: T")
    .Input("inputs: T")
    .Input("scale: float")
    .Input("offset: float")
    .Input("mean: float")
    .Input("variance: float")
    .Input("addends: num_addends * T")
    .Attr("T: {bfloat16, float}")
    .Attr("num_addends: int >= 0")
    .Attr("epsilon: float")
    .Attr("relu: bool")
    .Attr("with_sums: bool = false")
    .Output("inputs_gradient: T")
    .Output("scale_gradient: float")
    .Output("offset_gradient: float")
    .Output("sums: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(1));
      context->set_output(1, context->input(2));
      context->set_output(2, context->input(2));
      bool with_sums;
      TF_RETURN_IF_ERROR(context->GetAttr("with_sums", &with_sums));
      context->set_output(3, with_sums ? context->input(2) : context->Vector(0));
      return absl::OkStatus();
    });

// As FusedBatchNormV3, and, with `relu`, the ReLU behind it; inputs: [batch, height, width,
// channels]; what is of all channels: [channels]. The variance of the batch is by Bessel's
// correction, the saved one not; `nothing` is in the place of what TensorFlow's gradients need.
REGISTER_OP("SlimHorovodNorm")
    .Input("inputs: T")
    .Input("scale: float")
    .Input("offset: float")
    .Input("mean: float")
    .Input("variance: float")
    .Attr("T: {bfloat16, float}")
    .Attr("epsilon: float")
    .Attr("is_training: bool")
    .Attr("relu: bool")
    .Output("result: T")
    .Output("batch_mean: float")
    .Output("batch_variance: float")
    .Output("saved_mean: float")
    .Output("saved_variance: float")
    .Output("nothing: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(0));
      for (int i = 1; i < 5; ++i) context->set_output(i, context->input(1));
      context->set_output(5, context->Vector(0));
      return absl::OkStatus();
    });

// sum: gradient + factor * weights; factor: [], the others have one shape.
REGISTER_OP("SlimHorovodDecayedGradient")
    .Input("gradient: T")
    .Input("weights: float")
    .Input("factor: float")
    .Attr("T: {bfloat16, float}")
    .Output("sum: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(1));
      return absl::OkStatus();
    });

#define REGISTER(NAME, T, KERNEL) \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), KERNEL)

// The kernels see bfloat16 as its bits.
REGISTER("SlimHorovodConvolution", tensorflow::bfloat16, operations::Convolution<uint16_t>);
REGISTER("SlimHorovodConvolution", float, operations::Convolution<float>);
REGISTER("SlimHorovodFilterGradient", tensorflow::bfloat16, operations::FilterGradient<uint16_t>);
REGISTER("SlimHorovodFilterGradient", float, operations::FilterGradient<float>);
REGISTER("SlimHorovodBiasGradient", tensorflow::bfloat16, operations::BiasGradient<uint16_t>);
REGISTER("SlimHorovodBiasGradient", float, operations::BiasGradient<float>);
REGISTER("SlimHorovodNorm", tensorflow::bfloat16, operations::Norm<uint16_t>);
REGISTER("SlimHorovodNorm", float, operations::Norm<float>);
REGISTER("SlimHorovodNormGradient", tensorflow::bfloat16, operations::NormGradient<uint16_t>);
REGISTER("SlimHorovodNormGradient", float, operations::NormGradient<float>);
REGISTER("SlimHorovodDecayedGradient", tensorflow::bfloat16, operations::DecayedGradient<uint16_t>);
REGISTER("SlimHorovodDecayedGradient", float, operations::DecayedGradient<float>);

}  // namespace

// For Python: see library.py.
extern "C" int64_t SlimHorovodMultiplyAddsLeftOut() { return operations::left_out; }
