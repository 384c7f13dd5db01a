// What kernels of convolutions share, on CPUs with AVX-512, in float32 or bfloat16.

#ifndef TRAINER_CPU_KERNELS_CONVOLUTION_H_
#define TRAINER_CPU_KERNELS_CONVOLUTION_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

// A convolution of maps [batch, height, width, in_channels]; `top` and `left` are the padding
// before the first row and column.
struct Shape {
  int batch, height, width, in_channels;
  int out_height, out_width, out_channels;
  int kernel_height, kernel_width, stride, top, left;

  int64_t out_pixels() const { return int64_t{batch} * out_height * out_width; }
  int64_t filter_elements() const {
    return int64_t{kernel_height} * kernel_width * in_channels * out_channels;
  }
};

constexpr int kChannelMultiple = 32;

struct Range {
  int begin, end;
  int size() const { return end - begin; }
};

inline int CeilOfRatio(int a, int b) { return (a + b - 1) / b; }

// Elements of a lane, 32 bits: what one instruction multiplies and adds to a float32.
template <typename T>
constexpr int kPair = sizeof(float) / sizeof(T);

AVX512 inline __m512 MultiplyAdd(__m512 a, __m512 b, __m512 sum, float) {
  return _mm512_fmadd_ps(a, b, sum);
}
AVX512 inline __m512 MultiplyAdd(__m512 a, __m512 b, __m512 sum, uint16_t) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// A product in registers: the sums of 8 rows x 32 columns.
constexpr int kProductRows = 8;
constexpr int kProductColumns = 32;
constexpr int kVectors = kProductColumns / kLanes;

struct Product {
  __m512 sums[kProductRows][kVectors];
};

AVX512 inline __attribute__((always_inline)) void Clear(Product* product) {
  for (auto& row : product->sums)
    for (auto& vector : row) vector = _mm512_setzero_ps();
}

// Adds the product of a column, whose elements are `a_stride` lanes apart, and a row, `b`.
template <typename T>
AVX512 inline __attribute__((always_inline)) void MultiplyAdd(const float* a, int64_t a_stride,
                                                              const float* b, Product* product) {
  __m512 columns[kVectors];
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) columns[j] = Load(b + kLanes * j);
#pragma GCC unroll 8
  for (int i = 0; i < kProductRows; ++i) {
    const __m512 row = _mm512_set1_ps(a[i * a_stride]);
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j)
      product->sums[i][j] = MultiplyAdd(row, columns[j], product->sums[i][j], T());
  }
}

// Some lines of the cache.
struct Lines {
  const char* begin;
  int count;
};
constexpr int kLineBytes = 64;

// Memory that is read next. Products fetch it in passing: to wait for it would take a fifth of some
// convolutions' time.
class Ahead {
 public:
  void Add(const void* begin, int64_t bytes) {
    if (bytes < kLineBytes) return;
    left_.push_back({static_cast<const char*>(begin), static_cast<int>(bytes / kLineBytes)});
    count_ += left_.back().count;
  }

  // To be called once all is added: so many products will take some lines each.
  void Divide(int64_t products) {
    const int64_t parts = left_.size();
    share_ = count_ / std::max<int64_t>(1, products - parts) + 1;
  }

  Lines Take() {
    if (left_.empty()) return {nullptr, 0};
    Lines& lines = left_.back();
    const Lines share{lines.begin, std::min(share_, lines.count)};
    lines.begin += int64_t{share.count} * kLineBytes;
    lines.count -= share.count;
    if (lines.count == 0) left_.pop_back();
    return share;
  }

 private:
  std::vector<Lines> left_;
  int64_t count_ = 0;
  int share_ = 0;
};

// Fetches one line, if there is one left.
AVX512 inline __attribute__((always_inline)) void Fetch(Lines* lines) {
  if (lines->count == 0) return;
  _mm_prefetch(lines->begin, _MM_HINT_T1);
  lines->begin += kLineBytes;
  --lines->count;
}

// Stores a product, or adds it to what is there, in rows that are `row_elements` apart.
AVX512 inline __attribute__((always_inline)) void Store(const Product& product, bool adds,
                                                        float* to, int64_t row_elements) {
#pragma GCC unroll 8
  for (int i = 0; i < kProductRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float* const at = to + i * row_elements + kLanes * j;
      Store(at, adds ? _mm512_add_ps(Load(at), product.sums[i][j]) : product.sums[i][j]);
    }
}

// Stores lanes that are factors: those of `second` are of interest where a lane is a pair.
AVX512 inline void StorePair(__m512 first, __m512, float, float* to) { Store(to, first); }
AVX512 inline void StorePair(__m512 first, __m512 second, uint16_t, float* to) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
  _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// Weights that kLanes outputs have for an input, which is the first or the second of a pair; `row`:
// elements from an output to the next.
AVX512 inline __m512 LoadWeights(const float* from, int64_t row, bool) {
  if (row == 1) return Load(from);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_i32gather_ps(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(row)), from, 4);
}
AVX512 inline __m512 LoadWeights(const uint16_t* from, int64_t row, bool is_second) {
  if (row == 1) return Load(from);
  // Pairs of inputs are gathered, from where they begin.
  const __m512 pairs = LoadWeights((const float*)(from - is_second), row / 2, false);
  const __m512i bits = _mm512_castps_si512(pairs);
  return _mm512_castsi512_ps(is_second ? _mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000))
                                       : _mm512_slli_epi32(bits, 16));
}

// What becomes of a convolution's results: (x - mean) * scale + offset, of each channel, plus
// `addend`, and then, with `relu`, no less than 0.
template <typename T>
struct Epilogue {
  const float *mean = nullptr, *scale = nullptr, *offset = nullptr;  // Null: x itself.
  const T* addend = nullptr;                                        // Of the results' shape.
  bool relu = false;

  // The three steps, of kLanes channels of some results.
  template <int count>
  AVX512 inline __attribute__((always_inline)) void Normalize(int channel,
                                                              __m512 (&values)[count]) const {
    if (scale == nullptr) return;
    const __m512 of_mean = Load(mean + channel), of_scale = Load(scale + channel);
    const __m512 of_offset = Load(offset + channel);
    for (__m512& value : values) value = (value - of_mean) * of_scale + of_offset;
  }
  // `at`: of the first result, among all; `row`: results from each to the next.
  template <int count>
  AVX512 inline __attribute__((always_inline)) void Add(int64_t at, int64_t row,
                                                        __m512 (&values)[count]) const {
    if (addend == nullptr) return;
    for (int i = 0; i < count; ++i) values[i] += Load(addend + at + i * row);
  }
  template <int count>
  AVX512 inline __attribute__((always_inline)) void Rectify(__m512 (&values)[count]) const {
    if (!relu) return;
    for (__m512& value : values) value = _mm512_max_ps(_mm512_setzero_ps(), value);  // NaN stays.
  }
};

// Stores results of kProductColumns channels.
template <bool streams, typename T>
AVX512 inline __attribute__((always_inline)) void StorePanel(const __m512* panel, T* to) {
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) {
    if (!streams)
      Store(to + j * kLanes, panel[j]);
    else if (j * kLanes % kLineElements<T> == 0)
      Stream(to + j * kLanes, panel + j);
  }
}

#endif  // TRAINER_CPU_KERNELS_CONVOLUTION_H_
