// The gradient by a bias, as a TensorFlow operation: see operations.cc.

#ifndef TRAINER_CPU_KERNELS_BIAS_GRADIENT_OPERATION_H_
#define TRAINER_CPU_KERNELS_BIAS_GRADIENT_OPERATION_H_

#include <cstdint>
#include <vector>

#include "bias_gradient.h"
#include "operation.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "vectors.h"

namespace operations {

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

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_BIAS_GRADIENT_OPERATION_H_
