// TensorFlow operations for CPUs with AVX-512: see cpu_gradients.py and graph_optimizer.cc.

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "bias_gradient.h"
#include "convolution.h"
#include "filter_gradient.h"
#include "norm.h"
#include "norm_gradient.h"
#include "pointwise.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "winograd.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

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
void RunShares(OpKernelContext* context, int size, const std::function<void(Range)>& task) {
  const int count = std::min(Threads(context), size);
  RunAll(context, count, [&](int i) { task(Tasks::Between(size, i, count, 1)); });
}

int Size(const Tensor& tensor, int axis) { return static_cast<int>(tensor.dim_size(axis)); }

// Memory of some float32s, which an operation frees when it ends.
absl::Status Allocate(OpKernelContext* context, int64_t elements, Tensor* tensor) {
  return context->allocate_temp(tensorflow::DT_FLOAT, TensorShape({elements}), tensor);
}

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
      float *const mean = parameters, *const scale = mean + channels, *const offset = scale + channels;
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
REGISTER("SlimHorovodConvolution", tensorflow::bfloat16, Convolution<uint16_t>);
REGISTER("SlimHorovodConvolution", float, Convolution<float>);
REGISTER("SlimHorovodFilterGradient", tensorflow::bfloat16, FilterGradient<uint16_t>);
REGISTER("SlimHorovodFilterGradient", float, FilterGradient<float>);
REGISTER("SlimHorovodBiasGradient", tensorflow::bfloat16, BiasGradient<uint16_t>);
REGISTER("SlimHorovodBiasGradient", float, BiasGradient<float>);
REGISTER("SlimHorovodNorm", tensorflow::bfloat16, Norm<uint16_t>);
REGISTER("SlimHorovodNorm", float, Norm<float>);
REGISTER("SlimHorovodNormGradient", tensorflow::bfloat16, NormGradient<uint16_t>);
REGISTER("SlimHorovodNormGradient", float, NormGradient<float>);
REGISTER("SlimHorovodDecayedGradient", tensorflow::bfloat16, DecayedGradient<uint16_t>);
REGISTER("SlimHorovodDecayedGradient", float, DecayedGradient<float>);

}  // namespace
