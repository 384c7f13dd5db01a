// The gradient of weight decay added to another, as a TensorFlow operation: see operations.cc.

#ifndef TRAINER_CPU_KERNELS_DECAYED_GRADIENT_OPERATION_H_
#define TRAINER_CPU_KERNELS_DECAYED_GRADIENT_OPERATION_H_

#include <algorithm>
#include <cstdint>

#include "operation.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "vectors.h"

namespace operations {

template <typename T>
class DecayedGradient : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& gradient = context->input(0);
    const Tensor& weights = context->input(1);
    OP_REQUIRES(context, gradient.shape() == weights.shape(),
                absl::InvalidArgumentError("gradient and weights must have the same shape"));
    OP_REQUIRES(context, context->input(2).NumElements() == 1,
                absl::InvalidArgumentError("factor must be a scalar"));
    Tensor* sum;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, weights.shape(), &sum));
    const float factor = *Data<const float>(context->input(2));
    const int64_t size = weights.NumElements();
    const int64_t most_tasks = (size + kTask - 1) / kTask;
    const int tasks = std::min<int64_t>(Threads(context), most_tasks);
    RunAll(context, tasks, [&](int task) {
      Add(Data<const T>(gradient), Data<const float>(weights), factor, Cut(size, task, tasks),
          Cut(size, task + 1, tasks), Data<float>(*sum));
    });
  }

 private:
  AVX512 static void Add(const T* gradient, const float* weights, float factor, int64_t begin,
                         int64_t end, float* sum) {
    const __m512 factors = _mm512_set1_ps(factor);
    for (int64_t i = begin; i < end; i += kLanes) {
      const __mmask16 lanes = Lanes(std::min<int64_t>(end - i, kLanes));
      const __m512 decayed =
          _mm512_fmadd_ps(Load(weights + i, lanes), factors, Load(gradient + i, lanes));
      Store(sum + i, decayed, lanes);
    }
  }

  static constexpr int64_t kTask = 1 << 14;  // Elements: less is not worth another thread.
};

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_DECAYED_GRADIENT_OPERATION_H_
