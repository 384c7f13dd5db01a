// Vectors of 16 float32, to and from memory that holds float32 or bfloat16 (as uint16_t).

#ifndef TRAINER_CPU_KERNELS_VECTORS_H_
#define TRAINER_CPU_KERNELS_VECTORS_H_

// GCC 12 has what it calls uninitialized in this header, on purpose: its bug 105593.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>
#include <cstring>

// Of every function that has vectors in it: whether it may run is found out before it is called.
// A build that emulates the instructions has its own definition: tests/programs/emulated_avx512.h.
#ifndef AVX512
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#endif

constexpr int kLanes = 16;

AVX512 inline __m512 Load(const float* from) { return _mm512_loadu_ps(from); }
AVX512 inline __m512 Load(const uint16_t* from) {
  const __m256i bits = _mm256_loadu_si256((const __m256i*)from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
AVX512 inline void Store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
AVX512 inline void Store(uint16_t* to, __m512 value) {
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(value));
}

inline float ToFloat(float value) { return value; }
inline float ToFloat(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Those of `left` elements that a vector has room for.
inline __mmask16 Lanes(int left) { return left < kLanes ? (1 << left) - 1 : 0xffff; }

// The same of some lanes; the others are 0, and their memory is left alone.
AVX512 inline __m512 Load(const float* from, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, from);
}
AVX512 inline __m512 Load(const uint16_t* from, __mmask16 lanes) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
AVX512 inline void Store(float* to, __m512 value, __mmask16 lanes) {
  _mm512_mask_storeu_ps(to, lanes, value);
}
AVX512 inline void Store(uint16_t* to, __m512 value, __mmask16 lanes) {
  _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(value));
}

// Of a cache line.
template <typename T>
constexpr int kLineElements = 64 / sizeof(T);

// Whether a result is to be stored past the cache, in whole lines: it is too large to be there
// still when it is read, and each line of it would be read before it is written.
constexpr int64_t kStreamedBytes = 8 << 20;
template <typename T>
bool IsStreamed(int64_t elements, int channels) {
  return elements * int64_t{sizeof(T)} >= kStreamedBytes && channels % kLineElements<T> == 0;
}

// Stores a line past the cache.
AVX512 inline void Stream(float* to, const __m512* line) { _mm512_stream_ps(to, line[0]); }
AVX512 inline void Stream(uint16_t* to, const __m512* line) {
  _mm512_stream_si512((__m512i*)to, (__m512i)_mm512_cvtne2ps_pbh(line[1], line[0]));
}

// The sum of some parts, which are `elements` apart, for elements [begin, end), a multiple of
// kLanes.
template <typename T>
AVX512 void AddParts(const float* sums, int parts, int64_t elements, int64_t begin, int64_t end,
                     T* out) {
  for (int64_t i = begin; i < end; i += kLanes) {
    __m512 sum = Load(sums + i);
    for (int part = 1; part < parts; ++part)
      sum = _mm512_add_ps(sum, Load(sums + part * elements + i));
    Store(out + i, sum);
  }
}

#endif  // TRAINER_CPU_KERNELS_VECTORS_H_
