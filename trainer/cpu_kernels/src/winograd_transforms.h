// The transforms of Winograd's minimal filtering, see winograd.h: their matrices, and what these
// make of vectors.

#ifndef TRAINER_CPU_KERNELS_WINOGRAD_TRANSFORMS_H_
#define TRAINER_CPU_KERNELS_WINOGRAD_TRANSFORMS_H_

#include <array>

#include "vectors.h"

namespace winograd {

constexpr int kSize = 3;  // Of the filter.
constexpr int kTaps = kSize * kSize;

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

}  // namespace winograd

#endif  // TRAINER_CPU_KERNELS_WINOGRAD_TRANSFORMS_H_
