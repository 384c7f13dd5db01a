// Convolutions 3 x 3 of stride 1 and their gradients, on CPUs with AVX-512, by Winograd's minimal
// filtering: arXiv:1509.09308.
//
// A tile of outputs takes fewer multiplications where it is the transform of a product of
// transforms: of a tile of inputs, and of the filter. For each point of these, products of all
// tiles, channels and filters are one matrix product. A tile of 4 x 4 outputs takes 36 of them
// where its definition has 144; bfloat16 has too few digits for the factors that it needs, and
// takes tiles of 2 x 2: 16 for 36. What is multiplied is rounded as the maps are, sums are float32.
// All outputs of a tile share its rounding errors: what is infinite or far larger than the rest
// spoils, beside the outputs that it is a part of, those of the same tile.
//
// The gradients are the same with other matrices: by the inputs it is a convolution itself, by the
// filter it has the transposed matrices.

#ifndef TRAINER_CPU_KERNELS_WINOGRAD_H_
#define TRAINER_CPU_KERNELS_WINOGRAD_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "vectors.h"

namespace winograd {

constexpr int kSize = 3;  // Of the filter.
constexpr int kTaps = kSize * kSize;
// Channels of a panel of the results, and of the inputs of a filter's gradient.
constexpr int kOutPanel = kProductColumns;
constexpr int kInPanel = kLanes;
// Tiles of a convolution that are transformed and multiplied in turns, which keeps them in the
// cache.
constexpr int kBlockTiles = 48;

// Whether these kernels take less time for a convolution, and its gradients, than others do: it is
// of that kind, and has pixels enough to make up for the transforms of the filter.
constexpr int64_t kLeastPixels = 320;
inline bool Pays(const Shape& shape) {
  return shape.kernel_height == kSize && shape.kernel_width == kSize && shape.stride == 1 &&
         shape.in_channels % kChannelMultiple == 0 && shape.out_channels % kChannelMultiple == 0 &&
         shape.out_pixels() >= kLeastPixels;
}

template <int rows, int columns>
struct Matrix {
  float at[rows][columns];
  static constexpr int kRows = rows, kColumns = columns;
};

template <int rows, int columns>
constexpr Matrix<columns, rows> Transposed(const Matrix<rows, columns>& matrix) {
  Matrix<columns, rows> result{};
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) result.at[j][i] = matrix.at[i][j];
  return result;
}

// Where the polynomials of tile and filter are evaluated, beside infinity. Of the points for 4 x 4
// outputs, these give the smallest rounding errors: 0.3 of those with 1 and 2 (rms, 64 channels).
template <typename T>
constexpr std::array<double, 3> kAt{0, 1, -1};
template <>
constexpr std::array<double, 5> kAt<float>{0, .625, -.625, 1.5, -1.5};

// Pixels of a tile down or across, and the points of its transform.
template <typename T>
constexpr int kIns = kAt<T>.size() + 1;
template <typename T>
constexpr int kOuts = kIns<T> - (kSize - 1);
template <typename T>
constexpr int kPoints = kIns<T>* kIns<T>;

// The values of the polynomials of degree 0, 1, ... at the points.
template <typename T, int columns>
constexpr Matrix<kIns<T>, columns> MakePowers() {
  Matrix<kIns<T>, columns> result{};
  for (int i = 0; i < kIns<T> - 1; ++i) {
    double power = 1;
    for (int j = 0; j < columns; ++j, power *= kAt<T>[i]) result.at[i][j] = power;
  }
  result.at[kIns<T> - 1][columns - 1] = 1;  // At infinity.
  return result;
}

// The same, for each point over its distances from the others: what interpolation divides by.
template <typename T>
constexpr Matrix<kIns<T>, kSize> MakeFilter() {
  auto result = MakePowers<T, kSize>();
  for (int i = 0; i < kIns<T> - 1; ++i) {
    double distances = 1;
    for (double other : kAt<T>)
      if (other != kAt<T>[i]) distances *= kAt<T>[i] - other;
    for (float& value : result.at[i]) value /= distances;
  }
  return result;
}

// For each point, the coefficients of the polynomial that is 0 at all others.
template <typename T>
constexpr Matrix<kIns<T>, kIns<T>> MakeInputs() {
  Matrix<kIns<T>, kIns<T>> result{};
  for (int i = 0; i < kIns<T>; ++i) {
    double polynomial[kIns<T>]{1};
    for (int other = 0; other < kIns<T> - 1; ++other) {
      if (other == i) continue;
      for (int j = kIns<T> - 1; j >= 0; --j)
        polynomial[j] = (j > 0 ? polynomial[j - 1] : 0) - kAt<T>[other] * polynomial[j];
    }
    for (int j = 0; j < kIns<T>; ++j) result.at[i][j] = polynomial[j];
  }
  return result;
}

// The paper's B^T, G and A^T.
template <typename T>
constexpr auto kInputs = MakeInputs<T>();
template <typename T>
constexpr auto kFilter = MakeFilter<T>();
template <typename T>
constexpr auto kOutputs = Transposed(MakePowers<T, kOuts<T>>());
template <typename T>
constexpr auto kFilterTransposed = Transposed(kFilter<T>);
template <typename T>
constexpr auto kOutputsTransposed = Transposed(kOutputs<T>);

// kMatrix x `in` x transposed kMatrix; both are square, row by row.
template <const auto& kMatrix>
AVX512 inline __attribute__((always_inline)) void Transform(const __m512* in, __m512* out) {
  constexpr int rows = kMatrix.kRows, columns = kMatrix.kColumns;
  __m512 half[columns][rows];  // Transposed.
  // Unrolled, all that is known of the matrix is left out: zeros, and products with ones.
#pragma GCC unroll 8
  for (int j = 0; j < columns; ++j)
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      half[j][i] = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int k = 0; k < columns; ++k)
        if (kMatrix.at[i][k] != 0) half[j][i] += kMatrix.at[i][k] * in[k * columns + j];
    }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < rows; ++j) {
      __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int k = 0; k < columns; ++k)
        if (kMatrix.at[j][k] != 0) sum += kMatrix.at[j][k] * half[k][i];
      out[i * rows + j] = sum;
    }
}

// The same of kLanes channels of pixels.
template <const auto& kMatrix, typename T>
AVX512 inline __attribute__((always_inline)) void Transform(const T* const* pixels, int channel,
                                                            __m512* out) {
  constexpr int count = kMatrix.kColumns * kMatrix.kColumns;
  __m512 in[count];
#pragma GCC unroll 36
  for (int i = 0; i < count; ++i) in[i] = Load(pixels[i] + channel);
  Transform<kMatrix>(in, out);
}

// The tiles of a convolution's results, over all images.
template <typename T>
class Tiles {
 public:
  explicit Tiles(const Shape& shape)
      : shape_(shape),
        down_(CeilOfRatio(shape.out_height, kOuts<T>)),
        across_(CeilOfRatio(shape.out_width, kOuts<T>)) {}

  int count() const { return shape_.batch * down_ * across_; }

  // The rows that some tiles have a part in, counted over all images.
  Range FindInRows(Range tiles) const {
    return FindRows(tiles, shape_.height, kIns<T>, shape_.top);
  }
  Range FindOutRows(Range tiles) const { return FindRows(tiles, shape_.out_height, kOuts<T>, 0); }

  // Where pixels of a tile begin in memory, row by row: `outside`, where they are not in the map.
  void FindInputs(int tile, const T* inputs, const T* outside, const T** pixels) const {
    Find<kIns<T>>(inputs, shape_.height, shape_.width, shape_.in_channels, tile, shape_.top,
                  shape_.left, outside, pixels);
  }
  template <typename Outputs>  // Const, or not.
  void FindOutputs(int tile, Outputs* outputs, Outputs* outside, Outputs** pixels) const {
    Find<kOuts<T>>(outputs, shape_.out_height, shape_.out_width, shape_.out_channels, tile, 0, 0,
                   outside, pixels);
  }

 private:
  int FindTop(int tile) const { return tile / across_ % down_ * kOuts<T>; }

  Range FindRows(Range tiles, int height, int size, int top) const {
    const int first = tiles.begin, last = tiles.end - 1, per_map = down_ * across_;
    return {first / per_map * height + std::max(0, FindTop(first) - top),
            last / per_map * height + std::min(height, FindTop(last) - top + size)};
  }

  template <int size, typename Map>
  void Find(Map* maps, int height, int width, int channels, int tile, int top, int left,
            Map* outside, Map** pixels) const {
    const int64_t image = tile / (down_ * across_);
    const int first_y = FindTop(tile) - top;
    const int first_x = tile % across_ * kOuts<T> - left;
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        const int y = first_y + i, x = first_x + j;
        const bool is_inside = 0 <= y && y < height && 0 <= x && x < width;
        pixels[i * size + j] =
            is_inside ? maps + ((image * height + y) * width + x) * channels : outside;
      }
  }

  const Shape shape_;
  const int down_, across_;
};

// Distances between points in memory are not powers of 2: those would share a set of the cache.
constexpr int kLine = 16;

// Elements, of 32 bits, of a transformed filter.
template <typename T>
int64_t FilterElements(const Shape& shape) {
  return int64_t{kPoints<T>} * shape.in_channels / kPair<T> * shape.out_channels;
}

// Transforms the filter of a convolution.
//
// Args:
//   filter: [3, 3, in_channels, out_channels]; or, `is_turned`, that of a convolution of which this
//     is the gradient by the inputs: [3, 3, out_channels, in_channels], with taps from last to
//     first.
//   panels: of outputs, to transform.
//   out: [panels, points, in_channels / kPair, kOutPanel].
template <typename T>
AVX512 void TransformFilter(const Shape& shape, const T* filter, bool is_turned, Range panels,
                            float* out) {
  const int64_t ins = shape.in_channels, outs = shape.out_channels;
  const int64_t in_stride = is_turned ? 1 : outs, out_stride = is_turned ? ins : 1;
  const int64_t point = ins / kPair<T> * kOutPanel;
  for (int panel = panels.begin; panel < panels.end; ++panel)
    for (int in = 0; in < ins; in += kPair<T>)
      for (int lane = 0; lane < kOutPanel; lane += kLanes) {
        __m512 transforms[2][kPoints<T>];
        for (int i = 0; i < kPair<T>; ++i) {
          __m512 taps[kTaps];
          for (int tap = 0; tap < kTaps; ++tap) {
            const T* const of_tap = filter + (is_turned ? kTaps - 1 - tap : tap) * ins * outs;
            const int64_t at = (in + i) * in_stride + (panel * kOutPanel + lane) * out_stride;
            taps[tap] = LoadWeights(of_tap + at, out_stride, i == 1);
          }
          Transform<kFilter<T>>(taps, transforms[i]);
        }
        float* to = out + panel * kPoints<T> * point + in / kPair<T> * kOutPanel + lane;
        for (int p = 0; p < kPoints<T>; ++p, to += point)
          StorePair(transforms[0][p], transforms[1][p], T(), to);
      }
}

// The memory in which a block of tiles of a convolution is.
template <typename T>
struct Block {
  // Of tasks that have at most so many tiles.
  Block(const Shape& shape, int of_task) {
    const int blocks = CeilOfRatio(of_task, kBlockTiles);
    tiles = CeilOfRatio(CeilOfRatio(of_task, blocks), kProductRows) * kProductRows;
    in_point = int64_t{tiles} * shape.in_channels / kPair<T> + kLine;
    out_point = int64_t{tiles} * kOutPanel + kLine;
    pixel = shape.out_channels / kPair<T>;
  }

  int tiles;  // A multiple of kProductRows.
  // Elements, of 32 bits: from a point to the next, and of a pixel that takes what is outside maps.
  int64_t in_point, out_point, pixel;
  int64_t elements() const { return kPoints<T> * (in_point + out_point) + pixel; }
};

template <typename T>
AVX512 void TransformInputs(const Tiles<T>& tiles, Range which, const T* inputs, int channels,
                            int64_t point, float* out) {
  const std::vector<T> zeros(channels);
  const T* pixels[kPoints<T>];
  for (int tile = which.begin; tile < which.end; ++tile) {
    tiles.FindInputs(tile, inputs, zeros.data(), pixels);
    T* const to = reinterpret_cast<T*>(out) + int64_t{tile - which.begin} * channels;
    for (int channel = 0; channel < channels; channel += kLanes) {
      __m512 transform[kPoints<T>];
      Transform<kInputs<T>>(pixels, channel, transform);
#pragma GCC unroll 36
      for (int p = 0; p < kPoints<T>; ++p) Store(to + p * point * kPair<T> + channel, transform[p]);
    }
  }
}

template <bool streams, typename T>
AVX512 void TransformOutputs(const Tiles<T>& tiles, Range which, const float* products,
                             int64_t point, int channel, const Epilogue<T>& epilogue, T* outside,
                             T* outputs) {
  constexpr int count = kOuts<T> * kOuts<T>;
  T* pixels[count];
  for (int tile = which.begin; tile < which.end; ++tile) {
    tiles.FindOutputs(tile, outputs, outside, pixels);
    const float* const from = products + int64_t{tile - which.begin} * kOutPanel;
    __m512 out[kVectors][count];
    for (int j = 0; j < kVectors; ++j) {
      __m512 in[kPoints<T>];
#pragma GCC unroll 36
      for (int p = 0; p < kPoints<T>; ++p) in[p] = Load(from + p * point + j * kLanes);
      Transform<kOutputs<T>>(in, out[j]);
      epilogue.Normalize(channel + j * kLanes, out[j]);
      epilogue.Rectify(out[j]);
    }
    for (int i = 0; i < count; ++i) {
      const __m512 panel[kVectors]{out[0][i], out[1][i]};
      StorePanel<streams>(panel, pixels[i] + channel);
    }
  }
}

// The product of kProductRows tiles, `in` [tiles, depth], and a panel of the filter, [depth,
// kOutPanel]; depth: lanes. Fetches lines that are needed next.
template <typename T>
AVX512 void Multiply(const float* in, const float* filter, int depth, Lines next, float* out) {
  Product product;
  Clear(&product);
  for (int i = 0; i < depth; ++i) {
    MultiplyAdd<T>(in + i, depth, filter + i * kOutPanel, &product);
    Fetch(&next);
  }
  Store(product, false, out, kOutPanel);
}

// The share of some tiles and panels of outputs in a convolution.
//
// Args:
//   inputs: [batch, height, width, in_channels].
//   filter: see TransformFilter.
//   scratch: as many elements as `block` has.
//   outputs: [batch, out_height, out_width, out_channels].
template <typename T>
void Convolve(const Shape& shape, const Block<T>& block, const T* inputs, const float* filter,
              Range which, Range panels, const Epilogue<T>& epilogue, float* scratch, T* outputs) {
  const Tiles<T> tiles(shape);
  const int depth = shape.in_channels / kPair<T>;
  const int64_t in_row = int64_t{shape.width} * shape.in_channels;
  float* const products = scratch + kPoints<T> * block.in_point;
  T* const outside = reinterpret_cast<T*>(products + kPoints<T> * block.out_point);
  const bool streams = IsStreamed<T>(shape.out_pixels() * shape.out_channels, shape.out_channels);
  const auto transform_outputs = streams ? TransformOutputs<true, T> : TransformOutputs<false, T>;
  for (int begin = which.begin; begin < which.end; begin += block.tiles) {
    const Range now{begin, std::min(which.end, begin + block.tiles)};
    TransformInputs(tiles, now, inputs, shape.in_channels, block.in_point, scratch);
    Ahead ahead;
    if (now.end < which.end) {
      const Range next{now.end, std::min(which.end, now.end + block.tiles)};
      const Range rows = tiles.FindInRows(next);
      ahead.Add(inputs + rows.begin * in_row, rows.size() * in_row * sizeof(T));
      ahead.Divide(int64_t{panels.size()} * kPoints<T> * CeilOfRatio(now.size(), kProductRows));
    }
    for (int panel = panels.begin; panel < panels.end; ++panel) {
      for (int p = 0; p < kPoints<T>; ++p)
        for (int tile = 0; tile < now.size(); tile += kProductRows)
          Multiply<T>(scratch + p * block.in_point + int64_t{tile} * depth,
                      filter + (int64_t{panel} * kPoints<T> + p) * depth * kOutPanel, depth,
                      ahead.Take(), products + p * block.out_point + int64_t{tile} * kOutPanel);
      transform_outputs(tiles, now, products, block.out_point, panel * kOutPanel, epilogue, outside,
                        outputs);
    }
  }
  if (streams) _mm_sfence();
}

// The memory in which a block of tiles of a gradient is; a lane holds kPair tiles. It has as many
// tiles as channels: to read them is as much as to add a block's share to the sums.
template <typename T>
struct GradientBlock {
  // Of tasks that have at most so many tiles and channels.
  GradientBlock(int of_task, int ins, int outs) {
    const int blocks = CeilOfRatio(of_task, std::max(ins, outs));
    lanes = CeilOfRatio(CeilOfRatio(of_task, blocks), kPair<T>);
    in_point = int64_t{lanes} * ins + kLine;
    out_point = int64_t{lanes} * outs + kLine;
  }

  int lanes;
  int64_t in_point, out_point;  // Elements, of 32 bits, from a point to the next.
  int64_t elements() const { return kPoints<T> * (in_point + out_point); }
};

// Transforms channels of kPair tiles, and puts them into panels, [channels / panel, lanes, panel].
template <const auto& kMatrix, int panel, typename T>
AVX512 void TransformPair(const T* const* first, const T* const* second, Range channels, int lane,
                          int lanes, int64_t point, float* out) {
  for (int channel = 0; channel < channels.size(); channel += kLanes) {
    __m512 transforms[2][kPoints<T>];
    Transform<kMatrix>(first, channels.begin + channel, transforms[0]);
    if (kPair<T> == 2) Transform<kMatrix>(second, channels.begin + channel, transforms[1]);
    float* to = out + (int64_t{channel / panel} * lanes + lane) * panel + channel % panel;
    for (int p = 0; p < kPoints<T>; ++p, to += point)
      StorePair(transforms[0][p], transforms[1][p], T(), to);
  }
}

// The product of kProductRows inputs and a panel of outputs over some lanes of tiles. Fetches lines
// that are needed next.
template <typename T>
AVX512 void MultiplyPanels(const float* in, const float* out, int lanes, Lines next, bool adds,
                           float* sums, int64_t row_elements) {
  Product product;
  Clear(&product);
  for (int lane = 0; lane < lanes; ++lane) {
    MultiplyAdd<T>(in + lane * kInPanel, 1, out + lane * kOutPanel, &product);
    Fetch(&next);
  }
  Store(product, adds, sums, row_elements);
}

// The share of some tiles in the gradient by the filter, transformed.
//
// Args:
//   inputs: of the convolution, [batch, height, width, in_channels].
//   gradient: by its result, [batch, out_height, out_width, out_channels].
//   ins, outs: channels, from and to multiples of kChannelMultiple.
//   scratch: as many elements as `block` has.
//   sums: [points, in_channels, out_channels]: what is not of these channels stays as it is.
template <typename T>
void SumTiles(const Shape& shape, const GradientBlock<T>& block, const T* inputs,
              const T* gradient, Range which, Range ins, Range outs, float* scratch, float* sums) {
  const Tiles<T> tiles(shape);
  const int64_t in_row = int64_t{shape.width} * shape.in_channels;
  const int64_t out_row = int64_t{shape.out_width} * shape.out_channels;
  const std::vector<T> zeros(std::max(shape.in_channels, shape.out_channels));
  float* const packed_out = scratch + kPoints<T> * block.in_point;
  const T *in_pixels[2][kPoints<T>], *out_pixels[2][kOuts<T> * kOuts<T>];
  for (int begin = which.begin; begin < which.end; begin += block.lanes * kPair<T>) {
    const int end = std::min(which.end, begin + block.lanes * kPair<T>);
    const int lanes = CeilOfRatio(end - begin, kPair<T>);
    for (int lane = 0; lane < lanes; ++lane) {
      for (int i = 0; i < kPair<T>; ++i) {
        const int tile = begin + lane * kPair<T> + i;
        tiles.FindInputs(std::min(tile, end - 1), inputs, zeros.data(), in_pixels[i]);
        if (tile < end)
          tiles.FindOutputs(tile, gradient, zeros.data(), out_pixels[i]);
        else  // The last lane is half a pair.
          std::fill_n(out_pixels[i], kOuts<T> * kOuts<T>, zeros.data());
      }
      TransformPair<kInputs<T>, kInPanel>(in_pixels[0], in_pixels[1], ins, lane, lanes,
                                                     block.in_point, scratch);
      TransformPair<kOutputsTransposed<T>, kOutPanel>(out_pixels[0], out_pixels[1], outs, lane,
                                                      lanes, block.out_point, packed_out);
    }
    Ahead ahead;
    if (end < which.end) {
      const Range next{end, std::min(which.end, end + block.lanes * kPair<T>)};
      const Range in_rows = tiles.FindInRows(next), out_rows = tiles.FindOutRows(next);
      ahead.Add(inputs + in_rows.begin * in_row, in_rows.size() * in_row * sizeof(T));
      ahead.Add(gradient + out_rows.begin * out_row, out_rows.size() * out_row * sizeof(T));
      ahead.Divide(int64_t{kPoints<T>} * (ins.size() / kProductRows) * (outs.size() / kOutPanel));
    }
    for (int p = 0; p < kPoints<T>; ++p)
      for (int out = 0; out < outs.size(); out += kOutPanel)
        for (int in = 0; in < ins.size(); in += kProductRows) {
          const int64_t row = int64_t{p} * shape.in_channels + ins.begin + in;
          MultiplyPanels<T>(scratch + p * block.in_point + in / kInPanel * kInPanel * lanes +
                                in % kInPanel,
                            packed_out + p * block.out_point + out * lanes, lanes, ahead.Take(),
                            begin > which.begin, sums + row * shape.out_channels + outs.begin + out,
                            shape.out_channels);
        }
  }
}

// Adds up parts of a filter's gradient, each as SumTiles makes it, and transforms it back.
//
// Args:
//   ins: channels to do.
//   result: [3, 3, in_channels, out_channels].
template <typename T>
AVX512 void FinishGradient(const Shape& shape, const float* sums, int parts, Range ins, T* result) {
  const int64_t point = int64_t{shape.in_channels} * shape.out_channels;
  const int64_t end = int64_t{ins.end} * shape.out_channels;
  for (int64_t at = int64_t{ins.begin} * shape.out_channels; at < end; at += kLanes) {
    __m512 all[kPoints<T>], taps[kTaps];
    for (int p = 0; p < kPoints<T>; ++p) {
      all[p] = Load(sums + p * point + at);
      for (int part = 1; part < parts; ++part)
        all[p] += Load(sums + (part * kPoints<T> + p) * point + at);
    }
    Transform<kFilterTransposed<T>>(all, taps);
    for (int tap = 0; tap < kTaps; ++tap) Store(result + tap * point + at, taps[tap]);
  }
}

}  // namespace winograd

#endif  // TRAINER_CPU_KERNELS_WINOGRAD_H_
