// What the operations share: their threads, their tensors, and how work is cut into tasks.

#ifndef TRAINER_CPU_KERNELS_OPERATION_H_
#define TRAINER_CPU_KERNELS_OPERATION_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

#include "convolution.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace operations {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// The session's threads, and how many there are.
inline int Threads(OpKernelContext* context) {
  return context->device()->tensorflow_cpu_worker_threads()->num_threads;
}

// Runs task(0) ... task(count - 1) on them.
inline void RunAll(OpKernelContext* context, int count, const std::function<void(int)>& task) {
  const auto one_each = tsl::thread::ThreadPool::SchedulingParams::Fixed(1);
  context->device()->tensorflow_cpu_worker_threads()->workers->ParallelFor(
      count, one_each, [&task](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) task(i);
      });
}

// Where part `i` of `parts` of a range begins, at a multiple of `unit`.
inline int64_t Cut(int64_t size, int i, int parts, int unit = 1) {
  return size / unit * i / parts * unit;
}

template <typename T>
T* Data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data());
}

// Two numbers of tasks whose product is about that of threads: `parts` share the pixels, and
// `cuts`, where these are too few, the channels of each part.
struct Tasks {
  Tasks(int64_t most_parts, int most_cuts, int threads)
      : parts(std::clamp<int64_t>(most_parts, 1, threads)),
        cuts(std::clamp(threads / parts, 1, most_cuts)) {}

  int count() const { return parts * cuts; }
  Range Part(int task, int64_t size) const { return Between(size, task / cuts, parts, 1); }
  Range CutOut(int task, int64_t size, int unit = 1) const {
    return Between(size, task % cuts, cuts, unit);
  }

  static Range Between(int64_t size, int i, int parts, int unit) {
    return {static_cast<int>(Cut(size, i, parts, unit)),
            static_cast<int>(Cut(size, i + 1, parts, unit))};
  }

  int parts, cuts;
};

// Runs task on ranges that cover [0, size), one for each thread.
inline void RunShares(OpKernelContext* context, int size, const std::function<void(Range)>& task) {
  const int count = std::min(Threads(context), size);
  RunAll(context, count, [&](int i) { task(Tasks::Between(size, i, count, 1)); });
}

// Multiply-adds of convolutions by their definition, less those made in their place by tiles, of all
// that this process has computed so far.
inline std::atomic<int64_t> left_out{0};

inline void CountLeftOut(const Shape& shape, int64_t made) {
  left_out += shape.out_pixels() * shape.filter_elements() - made;
}

inline int Size(const Tensor& tensor, int axis) { return static_cast<int>(tensor.dim_size(axis)); }

// Memory of some float32s, which an operation frees when it ends.
inline absl::Status Allocate(OpKernelContext* context, int64_t elements, Tensor* tensor) {
  return context->allocate_temp(tensorflow::DT_FLOAT, TensorShape({elements}), tensor);
}

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_OPERATION_H_
