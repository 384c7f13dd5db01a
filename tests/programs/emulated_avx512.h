// The AVX-512 intrinsics that trainer/cpu_kernels/src uses, in plain C++, for CPUs without them and
// for sanitizers, which do not see what masked instructions read and write.
//
// To be included before all else (`-include`). Each function computes what Intel's manual says of
// the instruction (Software Developer's Manual, volume 2): rounding, denormals and what memory is
// touched; to the bit, but for which NaN comes out where several go in. Types are GCC's own, which
// it takes apart where the CPU has no such registers. An intrinsic that is missing here does not
// compile: GCC refuses its own without the target.

#ifndef TESTS_PROGRAMS_EMULATED_AVX512_H_
#define TESTS_PROGRAMS_EMULATED_AVX512_H_

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Functions with vectors in them are compiled for the CPU that all else is compiled for.
#define AVX512

#define EMULATED inline __attribute__((always_inline))

namespace emulated_avx512 {

// What GCC's __m512 and __m512i hold, by the size of the lanes.
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Shorts = uint16_t __attribute__((vector_size(64)));
using HalfShorts = uint16_t __attribute__((vector_size(32)));

constexpr int kLanes = 16;
constexpr uint32_t kSign = 0x80000000, kExponent = 0x7f800000, kInfinity = 0x7f800000;

template <typename To, typename From>
EMULATED To LoadAs(const From* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof(to));
  return to;
}

// Denormals become zeros with their signs.
EMULATED Words Flushed(Words bits) {
  return (bits & kExponent) != 0 ? bits : bits & kSign;
}

// The upper halves of what is rounded to bfloat16, to nearest and to even.
EMULATED Words RoundedBits(__m512 values) {
  const Words bits = Flushed((Words)values), magnitude = bits & ~kSign;
  const Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Words quiet = bits | 0x00400000;
  const Words finite_or_nan = magnitude > kInfinity ? quiet : rounded;
  return (magnitude == kInfinity ? bits : finite_or_nan) >> 16;
}

EMULATED Floats FusedMultiplyAdd(Floats a, Floats b, Floats c) {
  Floats result;
  for (int i = 0; i < kLanes; ++i) result[i] = std::fma(a[i], b[i], c[i]);
  return result;
}

// The CPU ends a program that streams to where no line begins, and so does this.
inline void CheckLine(const void* to) {
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0) return;
  std::fprintf(stderr, "emulated_avx512.h: a streamed store to %p, where no line begins\n", to);
  std::abort();
}

}  // namespace emulated_avx512

// --- Floats --------------------------------------------------------------------------------------

// Each name is a macro, so that the definition behind it, too, is of the function that replaces it.
#define _mm512_setzero_ps Emulated_mm512_setzero_ps
EMULATED __m512 _mm512_setzero_ps() { return __m512{}; }

#define _mm512_set1_ps Emulated_mm512_set1_ps
EMULATED __m512 _mm512_set1_ps(float value) {
  // Not by arithmetic, which would change the bits of pairs of bfloat16.
  __m512 result;
  for (int i = 0; i < emulated_avx512::kLanes; ++i) result[i] = value;
  return result;
}

#define _mm512_add_ps Emulated_mm512_add_ps
EMULATED __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }

#define _mm512_sub_ps Emulated_mm512_sub_ps
EMULATED __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }

#define _mm512_mul_ps Emulated_mm512_mul_ps
EMULATED __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }

#define _mm512_fmadd_ps Emulated_mm512_fmadd_ps
EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return emulated_avx512::FusedMultiplyAdd(a, b, c);
}

// The second operand where one is not a number, or both are zeros.
#define _mm512_max_ps Emulated_mm512_max_ps
EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }

// Only for "greater than", false where one is not a number.
#define _mm512_cmp_ps_mask Emulated_mm512_cmp_ps_mask
EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  if (predicate != _CMP_GT_OQ) std::abort();
  unsigned mask = 0;
  for (int i = 0; i < emulated_avx512::kLanes; ++i) mask |= unsigned{a[i] > b[i]} << i;
  return mask;
}

#define _mm512_maskz_mov_ps Emulated_mm512_maskz_mov_ps
EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 lanes, __m512 value) {
  __m512 result{};
  for (int i = 0; i < emulated_avx512::kLanes; ++i)
    if (lanes >> i & 1) result[i] = value[i];
  return result;
}

// --- Memory --------------------------------------------------------------------------------------

#define _mm512_loadu_ps Emulated_mm512_loadu_ps
EMULATED __m512 _mm512_loadu_ps(const void* from) {
  return emulated_avx512::LoadAs<__m512>(from);
}

#define _mm512_loadu_si512 Emulated_mm512_loadu_si512
EMULATED __m512i _mm512_loadu_si512(const void* from) {
  return emulated_avx512::LoadAs<__m512i>(from);
}

#define _mm256_loadu_si256 Emulated_mm256_loadu_si256
EMULATED __m256i _mm256_loadu_si256(const __m256i* from) {
  return emulated_avx512::LoadAs<__m256i>(from);
}

#define _mm512_storeu_ps Emulated_mm512_storeu_ps
EMULATED void _mm512_storeu_ps(void* to, __m512 value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

#define _mm512_storeu_si512 Emulated_mm512_storeu_si512
EMULATED void _mm512_storeu_si512(void* to, __m512i value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

#define _mm256_storeu_si256 Emulated_mm256_storeu_si256
EMULATED void _mm256_storeu_si256(__m256i* to, __m256i value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// Memory of other lanes is not touched.
#define _mm512_maskz_loadu_ps Emulated_mm512_maskz_loadu_ps
EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 lanes, const void* from) {
  __m512 result{};
  for (int i = 0; i < emulated_avx512::kLanes; ++i)
    if (lanes >> i & 1) result[i] = static_cast<const float*>(from)[i];
  return result;
}

#define _mm512_mask_storeu_ps Emulated_mm512_mask_storeu_ps
EMULATED void _mm512_mask_storeu_ps(void* to, __mmask16 lanes, __m512 value) {
  for (int i = 0; i < emulated_avx512::kLanes; ++i)
    if (lanes >> i & 1) static_cast<float*>(to)[i] = value[i];
}

#define _mm256_maskz_loadu_epi16 Emulated_mm256_maskz_loadu_epi16
EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 lanes, const void* from) {
  emulated_avx512::HalfShorts result{};
  for (int i = 0; i < emulated_avx512::kLanes; ++i)
    if (lanes >> i & 1) result[i] = static_cast<const uint16_t*>(from)[i];
  return (__m256i)result;
}

#define _mm256_mask_storeu_epi16 Emulated_mm256_mask_storeu_epi16
EMULATED void _mm256_mask_storeu_epi16(void* to, __mmask16 lanes, __m256i value) {
  const auto shorts = (emulated_avx512::HalfShorts)value;
  for (int i = 0; i < emulated_avx512::kLanes; ++i)
    if (lanes >> i & 1) static_cast<uint16_t*>(to)[i] = shorts[i];
}

#define _mm512_stream_ps Emulated_mm512_stream_ps
EMULATED void _mm512_stream_ps(void* to, __m512 value) {
  emulated_avx512::CheckLine(to);
  _mm512_storeu_ps(to, value);
}

#define _mm512_stream_si512 Emulated_mm512_stream_si512
EMULATED void _mm512_stream_si512(void* to, __m512i value) {
  emulated_avx512::CheckLine(to);
  _mm512_storeu_si512(to, value);
}

#define _mm512_i32gather_ps Emulated_mm512_i32gather_ps
EMULATED __m512 _mm512_i32gather_ps(__m512i offsets, const void* from, int scale) {
  const auto ints = (emulated_avx512::Ints)offsets;
  __m512 result;
  for (int i = 0; i < emulated_avx512::kLanes; ++i)
    result[i] =
        emulated_avx512::LoadAs<float>(static_cast<const char*>(from) + int64_t{ints[i]} * scale);
  return result;
}

// --- Integers ------------------------------------------------------------------------------------

#define _mm512_setzero_si512 Emulated_mm512_setzero_si512
EMULATED __m512i _mm512_setzero_si512() { return __m512i{}; }

#define _mm512_set1_epi32 Emulated_mm512_set1_epi32
EMULATED __m512i _mm512_set1_epi32(int value) {
  return (__m512i)(emulated_avx512::Ints{} + value);
}

#define _mm512_set1_epi16 Emulated_mm512_set1_epi16
EMULATED __m512i _mm512_set1_epi16(short value) {
  return (__m512i)(emulated_avx512::Shorts{} + static_cast<uint16_t>(value));
}

// From the last lane to the first.
#define _mm512_set_epi32 Emulated_mm512_set_epi32
EMULATED __m512i _mm512_set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h,
                                  int g, int f, int e, int d, int c, int b, int a) {
  return (__m512i)emulated_avx512::Ints{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}

#define _mm512_and_si512 Emulated_mm512_and_si512
EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }

#define _mm512_or_si512 Emulated_mm512_or_si512
EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }

// By fewer bits than a lane has: for more, C++ says nothing, and the CPU 0.
#define _mm512_slli_epi32 Emulated_mm512_slli_epi32
EMULATED __m512i _mm512_slli_epi32(__m512i value, unsigned bits) {
  return (__m512i)((emulated_avx512::Words)value << bits);
}

#define _mm512_mullo_epi32 Emulated_mm512_mullo_epi32
EMULATED __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
  return (__m512i)((emulated_avx512::Words)a * (emulated_avx512::Words)b);
}

#define _mm512_add_epi16 Emulated_mm512_add_epi16
EMULATED __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  return (__m512i)((emulated_avx512::Shorts)a + (emulated_avx512::Shorts)b);
}

#define _mm512_cvtepu16_epi32 Emulated_mm512_cvtepu16_epi32
EMULATED __m512i _mm512_cvtepu16_epi32(__m256i value) {
  return (__m512i)__builtin_convertvector((emulated_avx512::HalfShorts)value,
                                          emulated_avx512::Words);
}

// Six bits of an index count: of a first and then b.
#define _mm512_permutex2var_epi16 Emulated_mm512_permutex2var_epi16
EMULATED __m512i _mm512_permutex2var_epi16(__m512i a, __m512i indices, __m512i b) {
  return (__m512i)__builtin_shuffle((emulated_avx512::Shorts)a, (emulated_avx512::Shorts)b,
                                    (emulated_avx512::Shorts)indices);
}

#define _mm512_castps_si512 Emulated_mm512_castps_si512
EMULATED __m512i _mm512_castps_si512(__m512 value) { return (__m512i)value; }

#define _mm512_castsi512_ps Emulated_mm512_castsi512_ps
EMULATED __m512 _mm512_castsi512_ps(__m512i value) { return (__m512)value; }

// --- bfloat16 ------------------------------------------------------------------------------------

#define _mm512_cvtneps_pbh Emulated_mm512_cvtneps_pbh
EMULATED __m256bh _mm512_cvtneps_pbh(__m512 value) {
  return (__m256bh)__builtin_convertvector(emulated_avx512::RoundedBits(value),
                                           emulated_avx512::HalfShorts);
}

// The second operand comes first in the result.
#define _mm512_cvtne2ps_pbh Emulated_mm512_cvtne2ps_pbh
EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  const __m256bh halves[]{_mm512_cvtneps_pbh(low), _mm512_cvtneps_pbh(high)};
  return emulated_avx512::LoadAs<__m512bh>(halves);
}

// The product of the upper halves is added first, then that of the lower ones; products are exact.
#define _mm512_dpbf16_ps Emulated_mm512_dpbf16_ps
EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  using namespace emulated_avx512;
  const Words a_bits = (Words)a, b_bits = (Words)b, upper = Words{} + 0xffff0000;
  Words total = Flushed((Words)sum);
  total = Flushed((Words)FusedMultiplyAdd((Floats)Flushed(a_bits & upper),
                                          (Floats)Flushed(b_bits & upper), (Floats)total));
  return (__m512)Flushed((Words)FusedMultiplyAdd((Floats)Flushed(a_bits << 16),
                                                 (Floats)Flushed(b_bits << 16), (Floats)total));
}

#undef EMULATED

#endif  // TESTS_PROGRAMS_EMULATED_AVX512_H_
