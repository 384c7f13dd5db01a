// Convolutions and their gradients by the inputs, as TensorFlow operations: see operations.cc.

#ifndef TRAINER_CPU_KERNELS_CONVOLUTION_OPERATION_H_
#define TRAINER_CPU_KERNELS_CONVOLUTION_OPERATION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "operation.h"
#include "pointwise.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "vectors.h"
#include "winograd.h"

namespace operations {

template <typename T>
class Convolution : public OpKernel {
 public:
  explicit Convolution(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("padding", &padding_));
    OP_REQUIRES(context, padding_.size() == 4,
                absl::InvalidArgumentError("padding must be that of 4 sides"));
    OP_REQUIRES_OK(context, context->GetAttr("is_gradient", &is_gradient_));
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& inputs = context->input(0);
    const Tensor& filter = context->input(1);
    OP_REQUIRES(context, inputs.dims() == 4 && filter.dims() == 4,
                absl::InvalidArgumentError("inputs and filter must be 4-D"));
    const int size = Size(filter, 0);
    const Shape shape{
        .batch = Size(inputs, 0),
        .height = Size(inputs, 1),
        .width = Size(inputs, 2),
        .in_channels = Size(inputs, 3),
        .out_height = Size(inputs, 1) + padding_[0] + padding_[1] - (size - 1),
        .out_width = Size(inputs, 2) + padding_[2] + padding_[3] - (size - 1),
        .out_channels = Size(filter, is_gradient_ ? 2 : 3),
        .kernel_height = size,
        .kernel_width = Size(filter, 1),
        .stride = 1,
        .top = padding_[0],
        .left = padding_[2],
    };
    const bool is_pointwise = pointwise::Pays(shape);
    OP_REQUIRES(context,
                shape.out_height > 0 && shape.out_width > 0 &&
                    (is_pointwise || winograd::Pays(shape)),
                absl::InvalidArgumentError("the convolution must be one that the kernels know"));
    OP_REQUIRES(context, Size(filter, is_gradient_ ? 3 : 2) == shape.in_channels,
                absl::InvalidArgumentError("the filter must have the inputs' channels"));
    const TensorShape out_shape(
        {shape.batch, shape.out_height, shape.out_width, shape.out_channels});
    Epilogue<T> epilogue;
    std::vector<float> parameters(3 * shape.out_channels);
    OP_REQUIRES_OK(context, FindEpilogue(context, out_shape, parameters.data(), &epilogue));
    OP_REQUIRES(context, is_pointwise || epilogue.addend == nullptr,
                absl::InvalidArgumentError("a filter 3 x 3 must have no addend"));
    Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &result));
    const T* const weights = Data<const T>(filter);
    const T* const x = Data<const T>(inputs);
    is_pointwise ? ComputePointwise(context, shape, x, weights, epilogue, Data<T>(*result))
                 : ComputeByTiles(context, shape, x, weights, epilogue, Data<T>(*result));
  }

 private:
  // Parameters: [3, out_channels].
  absl::Status FindEpilogue(OpKernelContext* context, const TensorShape& shape, float* parameters,
                            Epilogue<T>* epilogue) const {
    tensorflow::OpInputList bias, norm, addends;
    TF_RETURN_IF_ERROR(context->input_list("bias", &bias));
    TF_RETURN_IF_ERROR(context->input_list("norm", &norm));
    TF_RETURN_IF_ERROR(context->input_list("addends", &addends));
    const int channels = shape.dim_size(3);
    if (bias.size() > 1 || (norm.size() != 0 && norm.size() != 4) || addends.size() > 1 ||
        (bias.size() > 0 && norm.size() > 0))
      return absl::InvalidArgumentError("there must be one bias or BN, and one addend, at most");
    for (const auto& list : {bias, norm})
      for (int i = 0; i < list.size(); ++i)
        if (list[i].NumElements() != channels)
          return absl::InvalidArgumentError("parameters must be one for each channel");
    epilogue->relu = relu_;
    if (bias.size() + norm.size() > 0) {
      float* const mean = parameters;
      float* const scale = mean + channels;
      float* const offset = scale + channels;
      for (int c = 0; c < channels; ++c) {
        const auto of = [&](int i) { return Data<const float>(norm[i])[c]; };
        const bool is_norm = norm.size() > 0;
        scale[c] = is_norm ? of(0) / std::sqrt(of(3) + epsilon_) : 1;
        offset[c] = is_norm ? of(1) : ToFloat(Data<const T>(bias[0])[c]);
        mean[c] = is_norm ? of(2) : 0;
      }
      epilogue->mean = mean;
      epilogue->scale = scale;
      epilogue->offset = offset;
    }
    if (addends.size() > 0) {
      if (addends[0].shape() != shape)
        return absl::InvalidArgumentError("the addend must have the result's shape");
      epilogue->addend = Data<const T>(addends[0]);
    }
    return absl::OkStatus();
  }

  void ComputePointwise(OpKernelContext* context, const Shape& shape, const T* inputs,
                        const T* filter, const Epilogue<T>& epilogue, T* result) const {
    using namespace pointwise;
    const int panels = shape.out_channels / kOutPanel;
    Tensor packed;
    OP_REQUIRES_OK(context, Allocate(context, FilterElements<T>(shape), &packed));
    RunShares(context, panels, [&](Range mine) {
      PackFilter(shape, filter, is_gradient_, mine, Data<float>(packed));
    });
    const int groups = Groups(shape);
    const Tasks tasks(groups * kRows / kBlockRows, panels, Threads(context));
    RunAll(context, tasks.count(), [&](int task) {
      Convolve(shape, inputs, Data<const float>(packed), tasks.Part(task, groups),
               tasks.CutOut(task, panels), epilogue, result);
    });
  }

  void ComputeByTiles(OpKernelContext* context, const Shape& shape, const T* inputs,
                      const T* filter, const Epilogue<T>& epilogue, T* result) const {
    using namespace winograd;
    const int tiles = Tiles<T>(shape).count();
    CountLeftOut(shape, int64_t{tiles} * kPoints<T> * shape.in_channels * shape.out_channels);
    const int panels = shape.out_channels / kOutPanel;
    const Tasks tasks(tiles / kBlockTiles, panels, Threads(context));
    const Block<T> block(shape, CeilOfRatio(tiles, tasks.parts));
    Tensor transformed, scratch;
    OP_REQUIRES_OK(context, Allocate(context, FilterElements<T>(shape), &transformed));
    OP_REQUIRES_OK(context, Allocate(context, tasks.count() * block.elements(), &scratch));
    RunShares(context, panels, [&](Range mine) {
      TransformFilter(shape, filter, is_gradient_, mine, Data<float>(transformed));
    });
    RunAll(context, tasks.count(), [&](int task) {
      Convolve(shape, block, inputs, Data<const float>(transformed), tasks.Part(task, tiles),
               tasks.CutOut(task, panels), epilogue,
               Data<float>(scratch) + task * block.elements(), result);
    });
  }

  std::vector<int> padding_;
  float epsilon_;
  bool is_gradient_, relu_;
};

}  // namespace operations

#endif  // TRAINER_CPU_KERNELS_CONVOLUTION_OPERATION_H_
