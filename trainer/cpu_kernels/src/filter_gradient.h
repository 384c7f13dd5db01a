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

#ifndef TRAINER_CPU_KERNELS_FILTER_GRADIENT_H_
#define TRAINER_CPU_KERNELS_FILTER_GRADIENT_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "vectors.h"

namespace filter_gradient {

// Channels of a panel: 16 inputs fill a cache line, 32 outputs two.
constexpr int kInPanel = 16;
constexpr int kOutPanel = kProductColumns;

// Pixels of a band, where there are so many: they share one addition to the sums in memory.
constexpr int kBandPixels = 448;

// Some rows of a group of `kPair` images, or, where maps are small, some whole groups.
struct Band {
  int first_image, groups;
  Range rows, in_rows;  // Of the result, and of the inputs, which may be none: padding.
};

// How the work is cut into bands.
class Bands {
 public:
  Bands(const Shape& shape, int images)
      : shape_(shape), images_(images), all_groups_(CeilOfRatio(shape.batch, images)) {
    groups_ = std::clamp(kBandPixels / (shape.out_height * shape.out_width), 1, all_groups_);
    rows_ = std::clamp(kBandPixels / shape.out_width, 1, shape.out_height);
    per_map_ = CeilOfRatio(shape.out_height, rows_);
  }

  int count() const { return CeilOfRatio(all_groups_, groups_) * per_map_; }

  Band operator[](int i) const {
    const int group = i / per_map_ * groups_;
    const int row = i % per_map_ * rows_;
    const Range rows{row, std::min(shape_.out_height, row + rows_)};
    const int in_begin = std::max(0, rows.begin * shape_.stride - shape_.top);
    const int in_end = (rows.end - 1) * shape_.stride - shape_.top + shape_.kernel_height;
    return {group * images_,
            std::min(groups_, all_groups_ - group),
            rows,
            {in_begin, std::max(in_begin, std::min(shape_.height, in_end))}};
  }

  // Elements, of 32 bits, of the memory that `SumBands` works in.
  int64_t scratch_elements() const {
    const int in_rows = std::min(shape_.height, (rows_ - 1) * shape_.stride + shape_.kernel_height);
    return int64_t{groups_} * (int64_t{in_rows} * shape_.width * shape_.in_channels +
                               int64_t{rows_} * shape_.out_width * shape_.out_channels);
  }

 private:
  const Shape shape_;
  const int images_, all_groups_;
  int groups_, rows_, per_map_;
};

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

// Distances in a panel, elements.
struct Strides {
  int64_t group, row, column;
};

// The product of a tile of inputs and a panel of outputs over some rows of some groups of images:
// added to sums [kProductRows, kOutPanel], whose rows are `row_elements` apart, or put there.
// Fetches lines that are needed next.
template <typename T>
AVX512 void Multiply(const float* in, Strides in_strides, const float* out, Strides out_strides,
                     int groups, int rows, int columns, Lines next, bool adds, float* sums,
                     int64_t row_elements) {
  Product product;
  Clear(&product);
  for (int group = 0; group < groups; ++group)
    for (int row = 0; row < rows; ++row) {
      const float* a = in + group * in_strides.group + row * in_strides.row;
      const float* b = out + group * out_strides.group + row * out_strides.row;
      for (int column = 0; column < columns; ++column) {
        MultiplyAdd<T>(a, 1, b, &product);
        Fetch(&next);
        a += in_strides.column;
        b += out_strides.column;
      }
    }
  Store(product, adds, sums, row_elements);
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
//   scratch: as many elements as `Bands` says.
//   sums: [kernel_height, kernel_width, in_channels, out_channels]: what is not of these channels
//     stays as it is.
template <typename T>
void SumBands(const Shape& shape, const T* inputs, const T* gradient, Range which, Range ins,
              Range outs, float* scratch, float* sums) {
  const Bands bands(shape, kPair<T>);
  const int64_t in_row = int64_t{shape.width} * shape.in_channels;
  const int64_t out_row = int64_t{shape.out_width} * shape.out_channels;
  const auto find_in = [&](const Band& band, int image) {
    return inputs + (int64_t{image} * shape.height + band.in_rows.begin) * in_row;
  };
  const auto find_out = [&](const Band& band, int image) {
    return gradient + (int64_t{image} * shape.out_height + band.rows.begin) * out_row;
  };
  const int64_t products = int64_t{shape.kernel_height} * shape.kernel_width *
                           (ins.size() / kProductRows) * (outs.size() / kOutPanel);
  for (int i = which.begin; i < which.end; ++i) {
    const Band band = bands[i];
    const Range rows = band.rows, in_rows = band.in_rows;
    const int64_t in_pixels = int64_t{in_rows.size()} * shape.width;
    const int64_t out_pixels = int64_t{rows.size()} * shape.out_width;
    const int64_t in_panel = band.groups * in_pixels * kInPanel;
    const int64_t out_panel = band.groups * out_pixels * kOutPanel;
    float* const packed_in = scratch;
    float* const packed_out = scratch + ins.size() / kInPanel * in_panel;
    for (int group = 0; group < band.groups; ++group) {
      const int image = band.first_image + kPair<T> * group;
      const bool has_second = image + 1 < shape.batch;
      PackPixels<kInPanel>(find_in(band, image) + ins.begin,
                           has_second ? find_in(band, image + 1) + ins.begin : nullptr, in_pixels,
                           shape.in_channels, ins.size(), in_panel,
                           packed_in + group * in_pixels * kInPanel);
      PackPixels<kOutPanel>(find_out(band, image) + outs.begin,
                            has_second ? find_out(band, image + 1) + outs.begin : nullptr,
                            out_pixels, shape.out_channels, outs.size(), out_panel,
                            packed_out + group * out_pixels * kOutPanel);
    }
    Ahead ahead;
    if (i + 1 < which.end) {
      const Band next = bands[i + 1];
      const int end = std::min(shape.batch, next.first_image + kPair<T> * next.groups);
      for (int image = next.first_image; image < end; ++image) {
        ahead.Add(find_in(next, image), next.in_rows.size() * in_row * sizeof(T));
        ahead.Add(find_out(next, image), next.rows.size() * out_row * sizeof(T));
      }
      ahead.Divide(products);
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
            for (int row = 0; row < kInPanel; row += kProductRows)
              Multiply<T>(a + row, in_strides, b, out_strides, band.groups, down.size(),
                          across.size(), ahead.Take(), i > which.begin,
                          to + int64_t{row} * shape.out_channels, shape.out_channels);
          }
  }
}

}  // namespace filter_gradient

#endif  // TRAINER_CPU_KERNELS_FILTER_GRADIENT_H_
