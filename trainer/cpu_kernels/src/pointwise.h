// Convolutions 1 x 1 of stride 1 and their gradients by the inputs, on CPUs with AVX-512: products
// of pixels [pixels, in_channels] and a filter [in_channels, out_channels].

#ifndef TRAINER_CPU_KERNELS_POINTWISE_H_
#define TRAINER_CPU_KERNELS_POINTWISE_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "vectors.h"

namespace pointwise {

constexpr int kOutPanel = kProductColumns;
constexpr int kRows = kProductRows;
// Rows of a block, which stays in the cache while all panels of the filter pass.
constexpr int kBlockRows = 64;

// Whether this kernel takes less time for a convolution than others do: it is of that kind, and has
// rows enough for all threads.
constexpr int64_t kLeastPixels = 256;
inline bool Pays(const Shape& shape) {
  return shape.kernel_height == 1 && shape.kernel_width == 1 && shape.stride == 1 &&
         shape.height == shape.out_height && shape.width == shape.out_width &&
         shape.in_channels % kChannelMultiple == 0 && shape.out_channels % kChannelMultiple == 0 &&
         shape.out_pixels() >= kLeastPixels;
}

// Elements, of 32 bits, of a packed filter.
template <typename T>
int64_t FilterElements(const Shape& shape) {
  return int64_t{shape.in_channels} / kPair<T> * shape.out_channels;
}

// Packs the filter of a convolution.
//
// Args:
//   filter: [in_channels, out_channels]; or, `is_turned`, [out_channels, in_channels].
//   panels: of outputs, to pack.
//   out: [panels, in_channels / kPair, kOutPanel].
template <typename T>
AVX512 void PackFilter(const Shape& shape, const T* filter, bool is_turned, Range panels,
                       float* out) {
  const int64_t in_stride = is_turned ? 1 : shape.out_channels;
  const int64_t out_stride = is_turned ? shape.in_channels : 1;
  for (int panel = panels.begin; panel < panels.end; ++panel) {
    float* to = out + int64_t{panel} * shape.in_channels / kPair<T> * kOutPanel;
    for (int in = 0; in < shape.in_channels; in += kPair<T>)
      for (int lane = 0; lane < kOutPanel; lane += kLanes, to += kLanes) {
        const T* const from = filter + in * in_stride + (panel * kOutPanel + lane) * out_stride;
        constexpr bool is_pair = kPair<T> == 2;
        const T* const second = is_pair ? from + in_stride : from;
        StorePair(LoadWeights(from, out_stride, false), LoadWeights(second, out_stride, is_pair),
                  T(), to);
      }
  }
}

// The product of kRows pixels and a panel of the filter, [depth, kOutPanel]; depth: lanes. Fetches
// lines that are needed next.
//
// Args:
//   at: of the first result, among all.
//   row: results from a pixel to the next.
template <bool streams, typename T>
AVX512 void Multiply(const float* in, const float* filter, int depth, Lines next,
                     const Epilogue<T>& epilogue, int channel, int64_t at, int64_t row, T* out) {
  Product product;
  Clear(&product);
  for (int i = 0; i < depth; ++i) {
    MultiplyAdd<T>(in + i, depth, filter + i * kOutPanel, &product);
    Fetch(&next);
  }
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) {
    __m512 column[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) column[i] = product.sums[i][j];
    epilogue.Normalize(channel + j * kLanes, column);
    epilogue.Add(at + j * kLanes, row, column);
    epilogue.Rectify(column);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) product.sums[i][j] = column[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) StorePanel<streams>(product.sums[i], out + at + i * row);
}

// How many groups of kRows pixels there are. The last may share some with the one before it, which
// computes the same.
inline int Groups(const Shape& shape) { return CeilOfRatio(shape.out_pixels(), kRows); }

// The share of some groups of pixels and panels of outputs in a convolution.
//
// Args:
//   inputs: [batch, height, width, in_channels].
//   filter: see PackFilter.
//   outputs: [batch, height, width, out_channels].
template <typename T>
void Convolve(const Shape& shape, const T* inputs, const float* filter, Range groups, Range panels,
              const Epilogue<T>& epilogue, T* outputs) {
  const int64_t ins = shape.in_channels, outs = shape.out_channels;
  const int depth = ins / kPair<T>;
  const bool streams = IsStreamed<T>(shape.out_pixels() * outs, outs);
  const auto multiply = streams ? Multiply<true, T> : Multiply<false, T>;
  constexpr int block = kBlockRows / kRows;
  for (int begin = groups.begin; begin < groups.end; begin += block) {
    const int end = std::min(groups.end, begin + block);
    Ahead ahead;
    const int64_t next = std::min<int64_t>(int64_t{end} * kRows, shape.out_pixels());
    const int64_t rows = std::min<int64_t>(kBlockRows, shape.out_pixels() - next);
    ahead.Add(inputs + next * ins, rows * ins * sizeof(T));
    if (epilogue.addend) ahead.Add(epilogue.addend + next * outs, rows * outs * sizeof(T));
    ahead.Divide(int64_t{panels.size()} * (end - begin));
    for (int panel = panels.begin; panel < panels.end; ++panel)
      for (int group = begin; group < end; ++group) {
        const int64_t pixel = std::min<int64_t>(group * kRows, shape.out_pixels() - kRows);
        const int channel = panel * kOutPanel;
        multiply(reinterpret_cast<const float*>(inputs + pixel * ins),
                 filter + int64_t{panel} * depth * kOutPanel, depth, ahead.Take(), epilogue,
                 channel, pixel * outs + channel, outs, outputs);
      }
  }
  if (streams) _mm_sfence();
}

}  // namespace pointwise

#endif  // TRAINER_CPU_KERNELS_POINTWISE_H_
