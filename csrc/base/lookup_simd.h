// SPDX-License-Identifier: Apache-2.0
// Lookups in tables of 16 floats. For *_simd.cc files only.
#pragma once
#include "base/simd.h"

namespace lowtide {
namespace {

// at(i)[lane] = table[i[lane]], 0 <= i < 16.
class Lookup16 {
 public:
#if defined(__AVX512F__)
  explicit inline __attribute__((always_inline)) Lookup16(const float* table)
      : all_(_mm512_loadu_ps(table)) {}
  inline __attribute__((always_inline)) vf32 at(vi32 i) const {
    return (vf32)_mm512_permutexvar_ps((__m512i)i, all_);
  }

 private:
  __m512 all_;
#elif defined(__AVX2__)
  explicit inline __attribute__((always_inline)) Lookup16(const float* table)
      : low_(_mm256_loadu_ps(table)), high_(_mm256_loadu_ps(table + 8)) {}
  inline __attribute__((always_inline)) vf32 at(vi32 i) const {
    const __m256 low = _mm256_permutevar8x32_ps(low_, (__m256i)i);
    const __m256 high = _mm256_permutevar8x32_ps(high_, (__m256i)i);
    return (vf32)_mm256_blendv_ps(low, high, _mm256_castsi256_ps((__m256i)(i << 28)));
  }

 private:
  __m256 low_, high_;
#else
  explicit inline __attribute__((always_inline)) Lookup16(const float* table) : table_(table) {}
  inline __attribute__((always_inline)) vf32 at(vi32 i) const {
    return vf32{table_[i[0]], table_[i[1]], table_[i[2]], table_[i[3]]};
  }

 private:
  const float* table_;
#endif
};

// Which lanes of r take a step: x > t (kEqual: or equal).
#if defined(__AVX2__)
template <bool kEqual>
LT_SIMD vi32 step_past(vi32 r, int step, vf32 x, vf32 t) {
#if defined(__AVX512F__)  // gcc turns masks into vectors and back where they are not spelt out
  const __mmask16 past = _mm512_cmp_ps_mask((__m512)x, (__m512)t, kEqual ? _CMP_GE_OQ : _CMP_GT_OQ);
  return (vi32)_mm512_mask_add_epi32((__m512i)r, past, (__m512i)r, (__m512i)splat_i(step));
#else
  const vi32 past = kEqual ? x >= t : x > t;
  return r + (past & step);
#endif
}
#endif

// How many of table[0 .. 14], ascending, are below x (kEqual: or equal to it).
template <bool kEqual>
LT_SIMD vi32 rank15(const float* table, const Lookup16& lookup, vf32 x) {
  vi32 r{};
#if defined(__AVX2__)
#pragma GCC unroll 4
  for (int step = 8; step > 0; step /= 2) {
    const vf32 t = step == 8 ? splat(table[7]) : lookup.at(r + (step - 1));
    r = step_past<kEqual>(r, step, x, t);
  }
#else  // lookups are slow: compare with all
  (void)lookup;
#pragma GCC unroll 15
  for (int i = 0; i < 15; ++i) r -= kEqual ? x >= splat(table[i]) : x > splat(table[i]);
#endif
  return r;
}

}  // namespace
}  // namespace lowtide
