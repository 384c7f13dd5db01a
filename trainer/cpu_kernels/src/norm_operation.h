// Batch normalization, as a TensorFlow operation: see operations.cc.

#ifndef TRAINER_CPU_KERNELS_NORM_OPERATION_H_
#define TRAINER_CPU_KERNELS_NORM_OPERATION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "norm.h"
#include "operation.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "vectors.h"

namespace operations {

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

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_NORM_OPERATION_H_
