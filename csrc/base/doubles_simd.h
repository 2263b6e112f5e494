// SPDX-License-Identifier: Apache-2.0
// Vectors of doubles of the ISA's native width, half as many as floats: for sums that need more
// than float32. For *_simd.cc files only.
#pragma once
#include "base/simd.h"

namespace lowtide {
namespace {

constexpr int kWide = kLanes / 2;
typedef double vd __attribute__((vector_size(4 * LT_LANES)));

LT_SIMD vd load_d(const double* p) {
  vd v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LT_SIMD void store_d(double* p, vd v) { __builtin_memcpy(p, &v, sizeof v); }

// Half a vector of floats, in intrinsics: gcc 12 converts through memory.
LT_SIMD vd widened(vf32 x, int half) {
#if defined(__AVX512F__)
  const __m512 v = (__m512)x;
  return (vd)_mm512_cvtps_pd(half == 0 ? _mm512_castps512_ps256(v) : _mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
  const __m256 v = (__m256)x;
  return (vd)_mm256_cvtps_pd(half == 0 ? _mm256_castps256_ps128(v) : _mm256_extractf128_ps(v, 1));
#elif defined(__x86_64__)
  const __m128 v = (__m128)x;
  return (vd)_mm_cvtps_pd(half == 0 ? v : _mm_movehl_ps(v, v));
#elif defined(__aarch64__)
  const float32x4_t v = (float32x4_t)x;
  return (vd)(half == 0 ? vcvt_f64_f32(vget_low_f32(v)) : vcvt_high_f64_f32(v));
#endif
}

// The product of two floats is exact in double, so fused and separate rounding agree.
LT_SIMD vd add_product(vd acc, vd a, vd b) {
#if defined(__AVX512F__)
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)acc);
#elif defined(__AVX2__)
  return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)acc);
#else
  return acc + a * b;
#endif
}

}  // namespace
}  // namespace lowtide
