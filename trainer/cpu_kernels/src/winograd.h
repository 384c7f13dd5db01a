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
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "vectors.h"
#include "winograd_tiles.h"
#include "winograd_transforms.h"

namespace winograd {

// Tiles of a convolution that are transformed and multiplied in turns, which keeps them in the
// cache.
constexpr int kBlockTiles = 48;

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

}  // namespace winograd

#endif  // TRAINER_CPU_KERNELS_WINOGRAD_H_
