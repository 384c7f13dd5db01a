// Prints what the instructions of the kernels make of many bit patterns, as 32-bit numbers.
//
// Compiled for a CPU that has the instructions, and with emulated_avx512.h included before all else,
// it is to print the same. The results of cvtneps_pbh come first, behind the patterns themselves.

// GCC 12 has what it calls uninitialized in this header, on purpose: its bug 105593.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>
#include <cstdio>
#include <cstring>

#ifndef AVX512
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#endif

namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 4096;
// Zeros, denormals, the smallest normal numbers, ties, the largest, infinities, NaN.
constexpr uint32_t kSpecial[]{0,          0x80000000, 1,          0x807fffff, 0x00800000, 0x80800000,
                              0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff, 0xff7fffff, 0x7f7f0000,
                              0x7f800000, 0xff800000, 0x7f800001, 0xffc12345};
constexpr uint32_t kSpecials = sizeof(kSpecial) / sizeof(*kSpecial);

// Numbers that look random; each fourth is a special one.
uint32_t Next() {
  static uint32_t state = 1;
  state = state * 1664525 + 1013904223;
  return state % 4 == 0 ? kSpecial[state / 4 % kSpecials] : state ^ state >> 13;
}

template <typename Vector>
void Print(const Vector& value) {
  std::fwrite(&value, sizeof(value), 1, stdout);
}

AVX512 void PrintAll(const uint32_t* bits) {
  const __m512 a = _mm512_loadu_ps(bits), b = _mm512_loadu_ps(bits + kLanes);
  const __m512 c = _mm512_loadu_ps(bits + 2 * kLanes);
  const __m512i of_a = _mm512_castps_si512(a), of_b = _mm512_castps_si512(b);
  Print(a);
  Print(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a)));
  Print(_mm512_cvtne2ps_pbh(a, b));
  Print(_mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b));
  Print(_mm512_fmadd_ps(a, b, c));
  Print(_mm512_max_ps(a, b));
  Print(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), c));
  Print(_mm512_maskz_loadu_ps(bits[0], bits + kLanes));
  Print(_mm512_permutex2var_epi16(of_a, _mm512_castps_si512(c), of_b));
  Print(_mm512_mullo_epi32(of_a, of_b));
  Print(_mm512_add_epi16(of_a, _mm512_set1_epi16(-7)));
  Print(_mm512_or_si512(_mm512_slli_epi32(of_a, 16), _mm512_and_si512(of_b, of_a)));
  Print(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
}

}  // namespace

int main() {
  uint32_t bits[3 * kLanes];
  for (int i = 0; i < kVectors; ++i) {
    for (uint32_t& pattern : bits) pattern = Next();
    PrintAll(bits);
  }
}
