// The gradient by a bias, on CPUs with AVX-512: sums over rows, in float32.

#ifndef TRAINER_CPU_KERNELS_BIAS_GRADIENT_H_
#define TRAINER_CPU_KERNELS_BIAS_GRADIENT_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace bias_gradient {

// Adds to sum [channels] the rows of a gradient [rows, channels].
template <typename T>
AVX512 void AddRows(const T* gradient, int64_t rows, int channels, float* sum) {
  constexpr int kRows = 8;  // At once: sums are loaded and stored less often.
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t end = std::min(rows, row + kRows);
    for (int c = 0; c < channels; c += kLanes) {
      __m512 total = Load(sum + c);
      for (int64_t at = row * channels + c; at < end * channels; at += channels)
        total = _mm512_add_ps(total, Load(gradient + at));
      Store(sum + c, total);
    }
  }
}

}  // namespace bias_gradient

#endif  // TRAINER_CPU_KERNELS_BIAS_GRADIENT_H_
