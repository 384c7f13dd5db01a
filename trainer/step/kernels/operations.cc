// TensorFlow operations for CPUs with AVX-512: see cpu_gradients.py and graph_optimizer.cc.

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "bias_gradient.h"
#include "filter_gradient.h"
#include "norm.h"
#include "norm_gradient.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;

// The session's threads, and how many there are.
int Threads(OpKernelContext* context) {
  return context->device()->tensorflow_cpu_worker_threads()->num_threads;
}

// Runs task(0) ... task(count - 1) on them.
void RunAll(OpKernelContext* context, int count, const std::function<void(int)>& task) {
  const auto one_each = tsl::thread::ThreadPool::SchedulingParams::Fixed(1);
  context->device()->tensorflow_cpu_worker_threads()->workers->ParallelFor(
      count, one_each, [&task](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) task(i);
      });
}

// Where part `i` of `parts` of a range begins, at a multiple of `unit`.
int64_t Cut(int64_t size, int i, int parts, int unit = 1) { return size / unit * i / parts * unit; }

template <typename T>
T* Data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data());
}

template <typename T>
class FilterGradient : public OpKernel {
 public:
  explicit FilterGradient(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("kernel_size", &kernel_size_));
    OP_REQUIRES_OK(context, context->GetAttr("padding", &padding_));
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
  }

  void Compute(OpKernelContext* context) override {
    using namespace filter_gradient;
    const Tensor& inputs = context->input(0);
    const Tensor& gradient = context->input(1);
    auto size = [](const Tensor& maps, int axis) { return static_cast<int>(maps.dim_size(axis)); };
    const Shape shape{
        .batch = size(inputs, 0),
        .height = size(inputs, 1),
        .width = size(inputs, 2),
        .in_channels = size(inputs, 3),
        .out_height = size(gradient, 1),
        .out_width = size(gradient, 2),
        .out_channels = size(gradient, 3),
        .kernel_height = kernel_size_[0],
        .kernel_width = kernel_size_[1],
        .stride = stride_,
        .top = padding_[0],
        .left = padding_[1],
    };
    OP_REQUIRES(
        context,
        shape.in_channels % kChannelMultiple == 0 && shape.out_channels % kChannelMultiple == 0,
        absl::InvalidArgumentError("channels must be multiples of 32"));
    const TensorShape filter_shape(
        {shape.kernel_height, shape.kernel_width, shape.in_channels, shape.out_channels});
    Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, filter_shape, &result));

    // Threads share the bands, each with sums of its own, as long as adding those up is little
    // beside the products; else they share the larger number of channels.
    const int threads = Threads(context);
    const Bands bands(shape, kImages<T>);
    const int64_t pixels = int64_t{bands.all_groups} * shape.out_height * shape.out_width;
    const int parts = std::clamp<int64_t>(
        std::min<int64_t>(pixels / kLeastPixelsOfPart, bands.count), 1, threads);
    const bool cuts_ins = shape.in_channels > shape.out_channels;
    const int channels = std::max(shape.in_channels, shape.out_channels);
    const int cuts = std::clamp(threads / parts, 1, channels / kChannelMultiple);

    const int64_t elements = shape.filter_elements();
    const int64_t scratch_elements = ScratchElements(shape, kImages<T>);
    Tensor sums, scratch;
    for (auto [tensor, of] : {std::pair(&sums, parts * elements),
                              std::pair(&scratch, parts * cuts * scratch_elements)}) {
      OP_REQUIRES_OK(context,
                     context->allocate_temp(tensorflow::DT_FLOAT, TensorShape({of}), tensor));
    }
    RunAll(context, parts * cuts, [&](int task) {
      const int part = task / cuts, cut = task % cuts;
      const Range all_ins{0, shape.in_channels}, all_outs{0, shape.out_channels};
      const Range mine{static_cast<int>(Cut(channels, cut, cuts, kChannelMultiple)),
                       static_cast<int>(Cut(channels, cut + 1, cuts, kChannelMultiple))};
      const Range which{static_cast<int>(Cut(bands.count, part, parts)),
                        static_cast<int>(Cut(bands.count, part + 1, parts))};
      SumBands(shape, Data<const T>(inputs), Data<const T>(gradient), which,
               cuts_ins ? mine : all_ins, cuts_ins ? all_outs : mine,
               Data<float>(scratch) + task * scratch_elements, Data<float>(sums) + part * elements);
    });
    RunAll(context, threads, [&](int task) {
      AddParts(Data<float>(sums), parts, elements, Cut(elements, task, threads, kLanes),
               Cut(elements, task + 1, threads, kLanes), Data<T>(*result));
    });
  }

 private:
  // Pixels of a part, below which adding up the parts' sums would be more than some 3 %.
  static constexpr int kLeastPixelsOfPart = 1024;

  std::vector<int> kernel_size_, padding_;
  int stride_;
};

template <typename T>
class BiasGradient : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& gradient = context->input(0);
    const int channels = gradient.dim_size(gradient.dims() - 1);
    OP_REQUIRES(context, channels % kLanes == 0,
                absl::InvalidArgumentError("channels must be a multiple of 16"));
    Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({channels}), &result));
    const int64_t rows = gradient.NumElements() / channels;
    const int threads = Threads(context);
    std::vector<float> sums(threads * channels);
    RunAll(context, threads, [&](int task) {
      const int64_t begin = Cut(rows, task, threads), end = Cut(rows, task + 1, threads);
      bias_gradient::AddRows(Data<const T>(gradient) + begin * channels, end - begin, channels,
                             &sums[task * channels]);
    });
    AddParts(sums.data(), threads, channels, 0, channels, Data<T>(*result));
  }
};

template <typename T>
class Norm : public OpKernel {
 public:
  explicit Norm(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES_OK(context, context->GetAttr("is_training", &is_training_));
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& inputs = context->input(0);
    OP_REQUIRES(context, inputs.dims() == 4, absl::InvalidArgumentError("inputs must be 4-D"));
    const int channels = inputs.dim_size(3);
    for (int i = 1; i < (is_training_ ? 3 : 5); ++i)
      OP_REQUIRES(context, context->input(i).NumElements() == channels,
                  absl::InvalidArgumentError("BN's parameters must be one for each channel"));
    Tensor *result, *nothing, *statistics[4];
    OP_REQUIRES_OK(
        context, context->forward_input_or_allocate_output({0}, 0, inputs.shape(), &result));
    for (int i = 0; i < 4; ++i)
      OP_REQUIRES_OK(context,
                     context->allocate_output(i + 1, TensorShape({channels}), &statistics[i]));
    OP_REQUIRES_OK(context, context->allocate_output(5, TensorShape({0}), &nothing));
    const T* const x = Data<const T>(inputs);
    const int64_t rows = channels ? inputs.NumElements() / channels : 0;
    const int threads = Threads(context);
    float* const mean = Data<float>(*statistics[2]);
    float* const variance = Data<float>(*statistics[3]);
    if (is_training_) {
      ComputeStatistics(context, x, rows, channels, mean, variance);
    } else {
      std::copy_n(Data<const float>(context->input(3)), channels, mean);
      std::copy_n(Data<const float>(context->input(4)), channels, variance);
    }
    // The moving variance is to estimate that of all images, by Bessel's correction.
    const float bessel = is_training_ && rows > 1 ? rows / (rows - 1.0f) : 1;
    std::vector<float> scale(channels);
    for (int c = 0; c < channels; ++c) {
      Data<float>(*statistics[0])[c] = mean[c];
      Data<float>(*statistics[1])[c] = variance[c] * bessel;
      const float inverse = 1 / std::sqrt(variance[c] + epsilon_);  // As in the gradient.
      scale[c] = Data<const float>(context->input(1))[c] * inverse;
    }
    const norm::Norm norm{mean, scale.data(), Data<const float>(context->input(2))};
    const bool is_in_place = Data<T>(*result) == x;
    const bool streams = !is_in_place && IsStreamed<T>(inputs.NumElements(), channels);
    const auto apply = relu_ ? streams ? norm::Apply<true, true, T> : norm::Apply<true, false, T>
                             : streams ? norm::Apply<false, true, T> : norm::Apply<false, false, T>;
    RunAll(context, threads, [&](int task) {
      const int64_t begin = Cut(rows, task, threads), end = Cut(rows, task + 1, threads);
      apply(x + begin * channels, end - begin, channels, norm, Data<T>(*result) + begin * channels);
    });
  }

 private:
  // Of all rows, [channels] each; the variance is without Bessel's correction.
  void ComputeStatistics(OpKernelContext* context, const T* x, int64_t rows, int channels,
                         float* mean, float* variance) {
    const int threads = Threads(context);
    // Distances from about the mean are small enough to square, however far that is from 0.
    const int64_t samples = std::min(rows, kSamples);
    std::vector<float> shift(channels);
    for (int64_t i = 0; i < samples; ++i) {
      // Parts may be images: each at another place.
      const int64_t row = Cut(rows, i, samples) + Cut(rows / samples, i, samples);
      norm::AddRow(x + row * channels, channels, 1.0f / samples, shift.data());
    }
    // Without low bits that all distances from bfloat16s would share, and all sums round alike.
    for (float& value : shift) value = static_cast<float>(tensorflow::bfloat16(value));
    std::vector<double> sums(2 * threads * channels);
    RunAll(context, threads, [&](int task) {
      const int64_t begin = Cut(rows, task, threads), end = Cut(rows, task + 1, threads);
      double* const of_task = &sums[2 * task * channels];
      norm::AddSums(x + begin * channels, end - begin, channels, shift.data(), of_task,
                    of_task + channels);
    });
    for (int c = 0; c < channels; ++c) {
      double sum = 0, squares = 0;
      for (int task = 0; task < threads; ++task) {
        sum += sums[2 * task * channels + c];
        squares += sums[(2 * task + 1) * channels + c];
      }
      const double distance = sum / rows;
      mean[c] = shift[c] + distance;
      variance[c] = std::max(squares / rows - distance * distance, 0.0);  // NaN stays so.
    }
  }

  // Rows, spread over all, whose mean is about that of all.
  static constexpr int64_t kSamples = 16;

  float epsilon_;
  bool is_training_, relu_;
};

template <typename T>
class NormGradient : public OpKernel {
 public:
  explicit NormGradient(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
    OP_REQUIRES_OK(context, context->GetAttr("with_sums", &with_sums_));
  }

  void Compute(OpKernelContext* context) override {
    relu_ ? ComputeWith<true>(context) : ComputeWith<false>(context);
  }

 private:
  template <bool relu>
  void ComputeWith(OpKernelContext* context) {
    const Tensor& inputs = context->input(1);
    const int channels = inputs.dim_size(3);
    OP_REQUIRES(context, channels % kLanes == 0,
                absl::InvalidArgumentError("channels must be a multiple of 16"));
    OP_REQUIRES(context, context->num_inputs() <= kAddend + 1,
                absl::InvalidArgumentError("there must be one addend at most"));
    const bool has_addend = context->num_inputs() > kAddend;
    for (int i : {0, has_addend ? kAddend : 0})
      OP_REQUIRES(context, context->input(i).shape() == inputs.shape(),
                  absl::InvalidArgumentError("gradient and addend must have the inputs' shape"));
    for (int i = 2; i < kAddend; ++i)
      OP_REQUIRES(context, context->input(i).NumElements() == channels,
                  absl::InvalidArgumentError("BN's parameters must be one for each channel"));
    Tensor *by_inputs, *by_scale, *by_offset, *sum;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, inputs.shape(),
                                                                      &by_inputs));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({channels}), &by_scale));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({channels}), &by_offset));
    const TensorShape sum_shape({with_sums_ ? channels : 0});
    OP_REQUIRES_OK(context, context->allocate_output(3, sum_shape, &sum));
    const int64_t rows = inputs.NumElements() / channels;
    const T* const gradient = Data<const T>(context->input(0));
    const T* const x = Data<const T>(inputs);
    const float* const gamma = Data<const float>(context->input(2));
    const float* const mean = Data<const float>(context->input(4));
    const float* const variance = Data<const float>(context->input(5));
    std::vector<float> inverse(channels), scale(channels);
    for (int c = 0; c < channels; ++c) {
      inverse[c] = 1 / std::sqrt(variance[c] + epsilon_);
      scale[c] = gamma[c] * inverse[c];
    }
    const norm_gradient::Norm norm{mean, scale.data(), Data<const float>(context->input(3))};

    const int threads = Threads(context);
    std::vector<float> sums(threads * channels), dots(threads * channels);
    RunAll(context, threads, [&](int task) {
      const int64_t begin = Cut(rows, task, threads), end = Cut(rows, task + 1, threads);
      norm_gradient::AddSums<relu>(x + begin * channels, gradient + begin * channels, end - begin,
                                   channels, norm, &sums[task * channels], &dots[task * channels]);
    });
    // By x: scale * (gradient - its mean - normalized x * mean(gradient * normalized x)), with the
    // means over all rows; arXiv:1502.03167, section 3.
    std::vector<float> by_x(channels), constant(channels);
    for (int c = 0; c < channels; ++c) {
      float sum = 0, dot = 0;
      for (int task = 0; task < threads; ++task) {
        sum += sums[task * channels + c];
        dot += dots[task * channels + c] * inverse[c];
      }
      Data<float>(*by_offset)[c] = sum;
      Data<float>(*by_scale)[c] = dot;
      constant[c] = -scale[c] * sum / rows;
      by_x[c] = -scale[c] * inverse[c] * dot / rows;
    }
    T* const out = Data<T>(*by_inputs);
    const T* const addend = has_addend ? Data<const T>(context->input(kAddend)) : nullptr;
    const auto apply = out != gradient && IsStreamed<T>(inputs.NumElements(), channels)
                           ? norm_gradient::Apply<relu, true, T>
                           : norm_gradient::Apply<relu, false, T>;
    std::fill(sums.begin(), sums.end(), 0.0f);
    RunAll(context, threads, [&](int task) {
      const int64_t begin = Cut(rows, task, threads), end = Cut(rows, task + 1, threads);
      const int64_t from = begin * channels;
      apply(x + from, gradient + from, addend ? addend + from : nullptr, end - begin, channels,
            norm, by_x.data(), constant.data(), out + from,
            with_sums_ ? &sums[task * channels] : nullptr);
    });
    if (with_sums_) AddParts(sums.data(), threads, channels, 0, channels, Data<float>(*sum));
  }

  static constexpr int kAddend = 6;

  float epsilon_;
  bool relu_, with_sums_;
};

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

#define REGISTER(NAME, T, KERNEL) \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), KERNEL)

// The kernels see bfloat16 as its bits.
REGISTER("SlimHorovodFilterGradient", tensorflow::bfloat16, FilterGradient<uint16_t>);
REGISTER("SlimHorovodFilterGradient", float, FilterGradient<float>);
REGISTER("SlimHorovodBiasGradient", tensorflow::bfloat16, BiasGradient<uint16_t>);
REGISTER("SlimHorovodBiasGradient", float, BiasGradient<float>);
REGISTER("SlimHorovodNorm", tensorflow::bfloat16, Norm<uint16_t>);
REGISTER("SlimHorovodNorm", float, Norm<float>);
REGISTER("SlimHorovodNormGradient", tensorflow::bfloat16, NormGradient<uint16_t>);
REGISTER("SlimHorovodNormGradient", float, NormGradient<float>);

}  // namespace
