// Batch normalization, or BN and the ReLU behind it, on CPUs with AVX-512.

#ifndef TRAINER_CPU_KERNELS_NORM_H_
#define TRAINER_CPU_KERNELS_NORM_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace norm {

// Rows that are read at once: what is of a channel is loaded once for all of them.
constexpr int kRows = 8;
// Rows whose sums are float32; more are added up in float64.
constexpr int kBandRows = 64;

// BN as it is applied, each [channels]: x -> (x - mean) * scale + offset.
struct Norm {
  const float *mean, *scale, *offset;
};

// Adds a row of x, [channels], times `factor`.
template <typename T>
AVX512 void AddRow(const T* x, int channels, float factor, float* sum) {
  for (int c = 0; c < channels; c += kLanes) {
    const __mmask16 lanes = Lanes(channels - c);
    const __m512 part = _mm512_mul_ps(Load(x + c, lanes), _mm512_set1_ps(factor));
    Store(sum + c, _mm512_add_ps(Load(sum + c, lanes), part), lanes);
  }
}

// Sums over rows of x [rows, channels], of its distance from `shift` and of the squares of that;
// all else [channels].
template <typename T>
AVX512 void AddSums(const T* x, int64_t rows, int channels, const float* shift, double* sum,
                    double* squares) {
  std::vector<float> of_band(2 * channels);
  float* const band_sum = of_band.data();
  float* const band_squares = band_sum + channels;
  for (int64_t band = 0; band < rows; band += kBandRows) {
    std::fill(of_band.begin(), of_band.end(), 0.0f);
    const int64_t band_end = std::min(rows, band + kBandRows);
    for (int64_t row = band; row < band_end; row += kRows) {
      const int64_t end = std::min(band_end, row + kRows);
      for (int c = 0; c < channels; c += kLanes) {
        const __mmask16 lanes = Lanes(channels - c);
        const __m512 from = Load(shift + c, lanes);
        __m512 all = Load(band_sum + c, lanes), all_squares = Load(band_squares + c, lanes);
        for (int64_t at = row * channels + c; at < end * channels; at += channels) {
          const __m512 distance = _mm512_sub_ps(Load(x + at, lanes), from);
          all = _mm512_add_ps(all, distance);
          all_squares = _mm512_fmadd_ps(distance, distance, all_squares);
        }
        Store(band_sum + c, all, lanes);
        Store(band_squares + c, all_squares, lanes);
      }
    }
    for (int c = 0; c < channels; ++c) {
      sum[c] += band_sum[c];
      squares[c] += band_squares[c];
    }
  }
}

// What BN makes of x, [rows, channels]; `streams`: see `IsStreamed`.
template <bool relu, bool streams, typename T>
AVX512 void Apply(const T* x, int64_t rows, int channels, Norm norm, T* out) {
  constexpr int kVectors = streams ? kLineElements<T> / kLanes : 1;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t end = std::min(rows, row + kRows);
    for (int c = 0; c < channels; c += kVectors * kLanes) {
      const __mmask16 lanes = Lanes(channels - c);
      __m512 mean[kVectors], scale[kVectors], offset[kVectors], results[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        mean[i] = Load(norm.mean + c + i * kLanes, lanes);
        scale[i] = Load(norm.scale + c + i * kLanes, lanes);
        offset[i] = Load(norm.offset + c + i * kLanes, lanes);
      }
      for (int64_t at = row * channels + c; at < end * channels; at += channels) {
        for (int i = 0; i < kVectors; ++i) {
          const __m512 centered = _mm512_sub_ps(Load(x + at + i * kLanes, lanes), mean[i]);
          results[i] = _mm512_fmadd_ps(centered, scale[i], offset[i]);
          // What is not a number stays so: the second operand is taken then.
          if (relu) results[i] = _mm512_max_ps(_mm512_setzero_ps(), results[i]);
        }
        if constexpr (streams) {
          Stream(out + at, results);
        } else {
          Store(out + at, results[0], lanes);
        }
      }
    }
  }
  if (streams) _mm_sfence();
}

}  // namespace norm

#endif  // TRAINER_CPU_KERNELS_NORM_H_
