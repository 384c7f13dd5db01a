// The gradient of a convolution 3 x 3 by its filter, by Winograd's minimal filtering: see
// winograd.h.

#ifndef TRAINER_CPU_KERNELS_WINOGRAD_GRADIENT_H_
#define TRAINER_CPU_KERNELS_WINOGRAD_GRADIENT_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "vectors.h"
#include "winograd_tiles.h"
#include "winograd_transforms.h"

namespace winograd {

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

#endif  // TRAINER_CPU_KERNELS_WINOGRAD_GRADIENT_H_
