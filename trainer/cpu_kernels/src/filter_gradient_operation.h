// The gradient of a convolution by its filter, as a TensorFlow operation: see operations.cc.

#ifndef TRAINER_CPU_KERNELS_FILTER_GRADIENT_OPERATION_H_
#define TRAINER_CPU_KERNELS_FILTER_GRADIENT_OPERATION_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "filter_gradient.h"
#include "operation.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "vectors.h"
#include "winograd_gradient.h"

namespace operations {

template <typename T>
class FilterGradient : public OpKernel {
 public:
  explicit FilterGradient(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("kernel_size", &kernel_size_));
    OP_REQUIRES_OK(context, context->GetAttr("padding", &padding_));
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& inputs = context->input(0);
    const Tensor& gradient = context->input(1);
    const Shape shape{
        .batch = Size(inputs, 0),
        .height = Size(inputs, 1),
        .width = Size(inputs, 2),
        .in_channels = Size(inputs, 3),
        .out_height = Size(gradient, 1),
        .out_width = Size(gradient, 2),
        .out_channels = Size(gradient, 3),
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
    const T* const x = Data<const T>(inputs);
    const T* const by_result = Data<const T>(gradient);
    winograd::Pays(shape) ? ComputeByTiles(context, shape, x, by_result, Data<T>(*result))
                          : ComputeByBands(context, shape, x, by_result, Data<T>(*result));
  }

 private:
  // Threads share the pixels, each with sums of its own, as long as adding those up is little
  // beside the products; else they share the larger number of channels.
  static Tasks Share(const Shape& shape, int64_t most_parts, int threads) {
    return Tasks(most_parts, std::max(shape.in_channels, shape.out_channels) / kChannelMultiple,
                 threads);
  }
  struct Channels {
    Channels(const Shape& shape, const Tasks& tasks, int task)
        : ins{0, shape.in_channels}, outs{0, shape.out_channels} {
      Range& larger = shape.in_channels > shape.out_channels ? ins : outs;
      larger = tasks.CutOut(task, larger.end, kChannelMultiple);
    }
    // Of the task that has the most.
    static Channels Most(const Shape& shape, const Tasks& tasks) {
      Channels most(shape, Tasks(1, 1, 1), 0);
      Range& larger = shape.in_channels > shape.out_channels ? most.ins : most.outs;
      larger.end = CeilOfRatio(larger.end / kChannelMultiple, tasks.cuts) * kChannelMultiple;
      return most;
    }
    Range ins, outs;
  };

  static void ComputeByBands(OpKernelContext* context, const Shape& shape, const T* inputs,
                             const T* gradient, T* result) {
    using namespace filter_gradient;
    const int threads = Threads(context);
    const Bands bands(shape, kPair<T>);
    const Tasks tasks = Share(
        shape, std::min<int64_t>(shape.out_pixels() / kLeastPixelsOfPart, bands.count()), threads);
    const int64_t elements = shape.filter_elements();
    const int64_t scratch_elements = bands.scratch_elements();
    Tensor sums, scratch;
    OP_REQUIRES_OK(context, Allocate(context, tasks.parts * elements, &sums));
    OP_REQUIRES_OK(context, Allocate(context, tasks.count() * scratch_elements, &scratch));
    RunAll(context, tasks.count(), [&](int task) {
      const Channels mine(shape, tasks, task);
      SumBands(shape, inputs, gradient, tasks.Part(task, bands.count()), mine.ins, mine.outs,
               Data<float>(scratch) + task * scratch_elements,
               Data<float>(sums) + task / tasks.cuts * elements);
    });
    RunAll(context, threads, [&](int task) {
      AddParts(Data<float>(sums), tasks.parts, elements, Cut(elements, task, threads, kLanes),
               Cut(elements, task + 1, threads, kLanes), result);
    });
  }

  static void ComputeByTiles(OpKernelContext* context, const Shape& shape, const T* inputs,
                             const T* gradient, T* result) {
    using namespace winograd;
    const int tiles = Tiles<T>(shape).count();
    const Tasks tasks = Share(shape, tiles / kLeastTilesOfPart, Threads(context));
    const int64_t elements = int64_t{kPoints<T>} * shape.in_channels * shape.out_channels;
    CountLeftOut(shape, tiles * elements);
    const Channels most = Channels::Most(shape, tasks);
    const GradientBlock<T> block(CeilOfRatio(tiles, tasks.parts), most.ins.size(),
                                 most.outs.size());
    Tensor sums, scratch;
    OP_REQUIRES_OK(context, Allocate(context, tasks.parts * elements, &sums));
    OP_REQUIRES_OK(context, Allocate(context, tasks.count() * block.elements(), &scratch));
    RunAll(context, tasks.count(), [&](int task) {
      const Channels mine(shape, tasks, task);
      SumTiles(shape, block, inputs, gradient, tasks.Part(task, tiles), mine.ins, mine.outs,
               Data<float>(scratch) + task * block.elements(),
               Data<float>(sums) + task / tasks.cuts * elements);
    });
    RunShares(context, shape.in_channels, [&](Range mine) {
      FinishGradient(shape, Data<float>(sums), tasks.parts, mine, result);
    });
  }

  // Of a part; with fewer, adding up the parts' sums would be more than some 3 %.
  static constexpr int kLeastPixelsOfPart = 1024;
  // The same by tiles, whose products have more sums.
  static constexpr int kLeastTilesOfPart = 256 * kPair<T>;

  std::vector<int> kernel_size_, padding_;
  int stride_;
};

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_FILTER_GRADIENT_OPERATION_H_
