// The gradient of batch normalization, or of BN and the ReLU behind it, on CPUs with AVX-512.
//
// What limits it is memory. The gradient that the ReLU lets through is never written: where it
// does is seen from BN's input, which must be read anyway.

#ifndef TRAINER_CPU_KERNELS_NORM_GRADIENT_H_
#define TRAINER_CPU_KERNELS_NORM_GRADIENT_H_

#include <algorithm>
#include <cstdint>

#include "norm.h"
#include "vectors.h"

namespace norm_gradient {

// Rows that are read at once: what is of a channel is loaded once for all of them.
constexpr int kRows = 4;

using norm::Norm;

// The gradient by BN's result, of which a ReLU lets only a part through. What the result was is
// computed as BN does, so that it is 0 where that was.
template <bool relu, typename T>
AVX512 inline __m512 Passed(__m512 centered, const T* gradient, __m512 scale, __m512 offset) {
  const __m512 all = Load(gradient);
  if (!relu) return all;
  const __m512 result = _mm512_fmadd_ps(centered, scale, offset);
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(result, _mm512_setzero_ps(), _CMP_GT_OQ), all);
}

// Sums over rows of x and gradient, both [rows, channels]: adds the gradient to `sum`, and the
// gradient times (x - mean) to `dot`, both [channels].
template <bool relu, typename T>
AVX512 void AddSums(const T* x, const T* gradient, int64_t rows, int channels, Norm norm,
                    float* sum, float* dot) {
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t end = std::min(rows, row + kRows);
    for (int c = 0; c < channels; c += kLanes) {
      const __m512 mean = Load(norm.mean + c);
      const __m512 scale = Load(norm.scale + c), offset = Load(norm.offset + c);
      __m512 of_gradient = Load(sum + c), of_product = Load(dot + c);
      for (int64_t at = row * channels + c; at < end * channels; at += channels) {
        const __m512 centered = _mm512_sub_ps(Load(x + at), mean);
        const __m512 passed = Passed<relu>(centered, gradient + at, scale, offset);
        of_gradient = _mm512_add_ps(of_gradient, passed);
        of_product = _mm512_fmadd_ps(passed, centered, of_product);
      }
      Store(sum + c, of_gradient);
      Store(dot + c, of_product);
    }
  }
}

// The gradient by x, [rows, channels]: scale * gradient + by_x * (x - mean) + constant + addend.
//
// Args:
//   streams: see `IsStreamed`.
//   addend: [rows, channels]; null: there is none.
//   out: may be `gradient`, unless it is streamed.
//   sum: gets the sums of `out` over all rows added, [channels]; null: nobody needs them.
template <bool relu, bool streams, typename T>
AVX512 void Apply(const T* x, const T* gradient, const T* addend, int64_t rows, int channels,
                  Norm norm, const float* by_x, const float* constant, T* out, float* sum) {
  constexpr int kVectors = streams ? kLineElements<T> / kLanes : 1;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t end = std::min(rows, row + kRows);
    for (int c = 0; c < channels; c += kVectors * kLanes) {
      __m512 mean[kVectors], slope[kVectors], rest[kVectors], scale[kVectors], offset[kVectors];
      __m512 results[kVectors], sums[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        const int from = c + i * kLanes;
        mean[i] = Load(norm.mean + from), slope[i] = Load(by_x + from);
        rest[i] = Load(constant + from);
        scale[i] = Load(norm.scale + from), offset[i] = Load(norm.offset + from);
        sums[i] = sum ? Load(sum + from) : _mm512_setzero_ps();
      }
      for (int64_t at = row * channels + c; at < end * channels; at += channels) {
        for (int i = 0; i < kVectors; ++i) {
          const int64_t from = at + i * kLanes;
          const __m512 centered = _mm512_sub_ps(Load(x + from), mean[i]);
          const __m512 passed = Passed<relu>(centered, gradient + from, scale[i], offset[i]);
          const __m512 own = _mm512_fmadd_ps(slope[i], centered, rest[i]);
          results[i] = _mm512_fmadd_ps(scale[i], passed, own);
          if (addend) results[i] = _mm512_add_ps(results[i], Load(addend + from));
          sums[i] = _mm512_add_ps(sums[i], results[i]);
        }
        if constexpr (streams) {
          Stream(out + at, results);
        } else {
          Store(out + at, results[0]);
        }
      }
      for (int i = 0; sum && i < kVectors; ++i) Store(sum + c + i * kLanes, sums[i]);
    }
  }
  if (streams) _mm_sfence();
}

}  // namespace norm_gradient

#endif  // TRAINER_CPU_KERNELS_NORM_GRADIENT_H_
