// The gradient of batch normalization, as a TensorFlow operation: see operations.cc.

#ifndef TRAINER_CPU_KERNELS_NORM_GRADIENT_OPERATION_H_
#define TRAINER_CPU_KERNELS_NORM_GRADIENT_OPERATION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "norm_gradient.h"
#include "operation.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "vectors.h"

namespace operations {

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

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_NORM_GRADIENT_OPERATION_H_
