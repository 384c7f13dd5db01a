// The gradient of a convolution by its filter, on CPUs with AVX-512, in float32 or bfloat16.
//
// For each tap of the filter it is a matrix product, [in_channels, pixels] x [pixels,
// out_channels], of the maps shifted by whole pixels. Both operands are cut into panels of channels
// that the product reads from front to back, a band of some hundred pixels at a time, which stays
// in the cache.
//
// The instruction for bfloat16 multiplies pairs of them and adds both products to a float32. The
// two of a pair come from the same pixel of two images, so that padding and stride shift whole
// pairs.

#ifndef TRAINER_STEP_KERNELS_FILTER_GRADIENT_H_
#define TRAINER_STEP_KERNELS_FILTER_GRADIENT_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace filter_gradient {

// Channels of a panel: 16 inputs fill a cache line, 32 outputs two.
constexpr int kInPanel = 16;
constexpr int kOutPanel = 32;
constexpr int kChannelMultiple = 32;
// A product keeps the sums of 8 inputs x 32 outputs in registers.
constexpr int kInTile = 8;
constexpr int kVectors = kOutPanel / kLanes;

// Pixels of a band, where there are so many: they share one addition to the sums in memory.
constexpr int kBandPixels = 784;

// Images whose pixels are multiplied by one instruction.
template <typename T>
constexpr int kImages = sizeof(float) / sizeof(T);

// A convolution of maps [batch, height, width, in_channels]; `top` and `left` are the padding
// before the first row and column.
struct Shape {
  int batch, height, width, in_channels;
  int out_height, out_width, out_channels;
  int kernel_height, kernel_width, stride, top, left;

  int64_t filter_elements() const {
    return int64_t{kernel_height} * kernel_width * in_channels * out_channels;
  }
};

struct Range {
  int begin, end;
  int size() const { return end - begin; }
};

inline int CeilOfRatio(int a, int b) { return (a + b - 1) / b; }

// How the work is cut into bands: some rows of a group of `kImages` images, or, where maps are
// small, some whole groups.
struct Bands {
  Bands(const Shape& shape, int images) : all_groups(CeilOfRatio(shape.batch, images)) {
    groups = std::clamp(kBandPixels / (shape.out_height * shape.out_width), 1, all_groups);
    rows = std::clamp(kBandPixels / shape.out_width, 1, shape.out_height);
    per_map = CeilOfRatio(shape.out_height, rows);
    count = CeilOfRatio(all_groups, groups) * per_map;
  }

  int all_groups, groups, rows, per_map, count;
};

// Elements, of 32 bits, of the memory that `SumBands` works in.
inline int64_t ScratchElements(const Shape& shape, int images) {
  const Bands bands(shape, images);
  const int in_rows = std::min(shape.height, (bands.rows - 1) * shape.stride + shape.kernel_height);
  return int64_t{bands.groups} * (int64_t{in_rows} * shape.width * shape.in_channels +
                                  int64_t{bands.rows} * shape.out_width * shape.out_channels);
}

// What a panel has of 32 channels of a pixel: of one image, or of two, in turns.
AVX512 inline void Pack(const float* from, const float*, float* low, float* high) {
  Store(low, Load(from));
  Store(high, Load(from + kLanes));
}
AVX512 inline void Pack(const uint16_t* first, const uint16_t* second, float* low, float* high) {
  const __m512i a = _mm512_loadu_si512(first);
  const __m512i b = second ? _mm512_loadu_si512(second) : _mm512_setzero_si512();
  const __m512i in_turns =
      _mm512_set_epi32(0x002f000f, 0x002e000e, 0x002d000d, 0x002c000c, 0x002b000b, 0x002a000a,
                       0x00290009, 0x00280008, 0x00270007, 0x00260006, 0x00250005, 0x00240004,
                       0x00230003, 0x00220002, 0x00210001, 0x00200000);
  const __m512i behind = _mm512_set1_epi16(16);
  _mm512_storeu_si512(low, _mm512_permutex2var_epi16(a, in_turns, b));
  _mm512_storeu_si512(high, _mm512_permutex2var_epi16(a, _mm512_add_epi16(in_turns, behind), b));
}

// Puts `channels` channels of some pixels of a group of images into panels.
//
// Args:
//   first, second: its images at these pixels; null: there is no second one.
//   row: elements from a pixel to the next.
//   panel_elements: from a panel to the next.
template <int panel, typename T>
AVX512 void PackPixels(const T* first, const T* second, int64_t pixels, int row, int channels,
                       int64_t panel_elements, float* out) {
  constexpr int kAtOnce = 8;  // Pixels: a few rows in, and a few lines of each panel out.
  const int64_t high = panel == 32 ? kLanes : panel_elements;
  for (int64_t begin = 0; begin < pixels; begin += kAtOnce) {
    const int64_t end = std::min(pixels, begin + kAtOnce);
    for (int channel = 0; channel < channels; channel += 32)
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const int64_t from = pixel * row + channel;
        float* to = out + channel / panel * panel_elements + pixel * panel;
        Pack(first + from, second ? second + from : nullptr, to, to + high);
      }
  }
}

AVX512 inline __m512 MultiplyAdd(__m512 a, __m512 b, __m512 sum, float) {
  return _mm512_fmadd_ps(a, b, sum);
}
AVX512 inline __m512 MultiplyAdd(__m512 a, __m512 b, __m512 sum, uint16_t) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// Distances in a panel, elements.
struct Strides {
  int64_t group, row, column;
};

// The product of a tile of inputs and a panel of outputs over some rows of some groups of images:
// added to sums [kInTile, kOutPanel], whose rows are `row_elements` apart, or put there.
template <typename T>
AVX512 void Multiply(const float* in, Strides in_strides, const float* out, Strides out_strides,
                     int groups, int rows, int columns, bool adds, float* sums,
                     int64_t row_elements) {
  __m512 tile[kInTile][kVectors];
  for (auto& row : tile)
    for (auto& vector : row) vector = _mm512_setzero_ps();
  for (int group = 0; group < groups; ++group)
    for (int row = 0; row < rows; ++row) {
      const float* a = in + group * in_strides.group + row * in_strides.row;
      const float* b = out + group * out_strides.group + row * out_strides.row;
      for (int column = 0; column < columns; ++column) {
        __m512 outs[kVectors];
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) outs[j] = Load(b + kLanes * j);
#pragma GCC unroll 8
        for (int i = 0; i < kInTile; ++i) {
          const __m512 ins = _mm512_set1_ps(a[i]);
#pragma GCC unroll 2
          for (int j = 0; j < kVectors; ++j)
            tile[i][j] = MultiplyAdd(ins, outs[j], tile[i][j], T());
        }
        a += in_strides.column;
        b += out_strides.column;
      }
    }
  for (int i = 0; i < kInTile; ++i)
    for (int j = 0; j < kVectors; ++j) {
      float* to = sums + i * row_elements + kLanes * j;
      Store(to, adds ? _mm512_add_ps(Load(to), tile[i][j]) : tile[i][j]);
    }
}

// The part of `outs`, positions of a result, for which position * stride + offset is in a map.
inline Range WithinMap(int offset, int stride, int size, Range outs) {
  const int begin = offset < 0 ? CeilOfRatio(-offset, stride) : 0;
  const int end = offset < size ? (size - 1 - offset) / stride + 1 : 0;
  return {std::max(outs.begin, begin), std::max(outs.begin, std::min(outs.end, end))};
}

// The share of some bands in the gradient.
//
// Args:
//   inputs: of the convolution, [batch, height, width, in_channels].
//   gradient: by its result, [batch, out_height, out_width, out_channels].
//   which: bands, see `Bands`.
//   ins, outs: channels, from and to multiples of kChannelMultiple.
//   scratch: as many elements as `ScratchElements` says.
//   sums: [kernel_height, kernel_width, in_channels, out_channels]: what is not of these channels
//     stays as it is.
template <typename T>
void SumBands(const Shape& shape, const T* inputs, const T* gradient, Range which, Range ins,
              Range outs, float* scratch, float* sums) {
  const Bands bands(shape, kImages<T>);
  const int64_t in_map = int64_t{shape.height} * shape.width * shape.in_channels;
  const int64_t out_map = int64_t{shape.out_height} * shape.out_width * shape.out_channels;
  for (int band = which.begin; band < which.end; ++band) {
    const int first = band / bands.per_map * bands.groups;
    const int groups = std::min(bands.groups, bands.all_groups - first);
    const int top_row = band % bands.per_map * bands.rows;
    const Range rows{top_row, std::min(shape.out_height, top_row + bands.rows)};
    // None, where all is padding.
    const int in_begin = std::max(0, rows.begin * shape.stride - shape.top);
    const int in_end = (rows.end - 1) * shape.stride - shape.top + shape.kernel_height;
    const Range in_rows{in_begin, std::max(in_begin, std::min(shape.height, in_end))};
    const int64_t in_pixels = int64_t{in_rows.size()} * shape.width;
    const int64_t out_pixels = int64_t{rows.size()} * shape.out_width;
    const int64_t in_panel = groups * in_pixels * kInPanel;
    const int64_t out_panel = groups * out_pixels * kOutPanel;
    float* const packed_in = scratch;
    float* const packed_out = scratch + ins.size() / kInPanel * in_panel;
    for (int group = 0; group < groups; ++group) {
      const int image = kImages<T> * (first + group);
      const bool has_second = image + 1 < shape.batch;
      const T* from = inputs + image * in_map +
                      int64_t{in_rows.begin} * shape.width * shape.in_channels + ins.begin;
      PackPixels<kInPanel>(from, has_second ? from + in_map : nullptr, in_pixels, shape.in_channels,
                           ins.size(), in_panel, packed_in + group * in_pixels * kInPanel);
      from = gradient + image * out_map +
             int64_t{rows.begin} * shape.out_width * shape.out_channels + outs.begin;
      PackPixels<kOutPanel>(from, has_second ? from + out_map : nullptr, out_pixels,
                            shape.out_channels, outs.size(), out_panel,
                            packed_out + group * out_pixels * kOutPanel);
    }
    const Strides in_strides{in_pixels * kInPanel, int64_t{shape.width} * shape.stride * kInPanel,
                             shape.stride * kInPanel};
    const Strides out_strides{out_pixels * kOutPanel, int64_t{shape.out_width} * kOutPanel,
                              kOutPanel};
    for (int out = 0; out < outs.size(); out += kOutPanel)
      for (int in = 0; in < ins.size(); in += kInPanel)
        for (int y = 0; y < shape.kernel_height; ++y)
          for (int x = 0; x < shape.kernel_width; ++x) {
            const Range down = WithinMap(y - shape.top, shape.stride, shape.height, rows);
            const Range across =
                WithinMap(x - shape.left, shape.stride, shape.width, {0, shape.out_width});
            const int64_t in_pixel =
                int64_t{down.begin * shape.stride + y - shape.top - in_rows.begin} * shape.width +
                across.begin * shape.stride + x - shape.left;
            const int64_t out_pixel =
                int64_t{down.begin - rows.begin} * shape.out_width + across.begin;
            const float* a = packed_in + in / kInPanel * in_panel + in_pixel * kInPanel;
            const float* b = packed_out + out / kOutPanel * out_panel + out_pixel * kOutPanel;
            const int64_t tap = y * shape.kernel_width + x;
            float* to = sums + (tap * shape.in_channels + ins.begin + in) * shape.out_channels +
                        outs.begin + out;
            for (int i = 0; i < kInPanel; i += kInTile)
              Multiply<T>(a + i, in_strides, b, out_strides, groups, down.size(), across.size(),
                          band > which.begin, to + int64_t{i} * shape.out_channels,
                          shape.out_channels);
          }
  }
}

}  // namespace filter_gradient

#endif  // TRAINER_STEP_KERNELS_FILTER_GRADIENT_H_
