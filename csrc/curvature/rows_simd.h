// SPDX-License-Identifier: Apache-2.0
// kLanes neighbours of a tensor, and the 32 sums of sums.h in vectors of doubles. For *_simd.cc
// files only.
#pragma once
#include "base/simd.h"
#include "curvature/sums.h"

namespace lowtide::curvature {
namespace {

LT_SIMD vf32 load_row(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 load_row(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
LT_SIMD void store_row(float* p, vf32 x) { store(p, x); }
LT_SIMD void store_row(uint16_t* p, vf32 x) { store(p, float_to_bf16(x)); }

// The first n < 32 elements at p with zeros behind them.
template <class T>
LT_SIMD void copy_in(T* buffer, const T* p, int64_t n) {
  __builtin_memset(buffer, 0, kSums * sizeof(T));
  __builtin_memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
}
template <class T>
LT_SIMD void copy_out(T* p, const T* buffer, int64_t n) {
  __builtin_memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// The lines that 32 elements kAhead bytes later lie in. From memory, sums are a fifth faster with
// it, of bfloat16 twice as fast: the processor's own prefetchers stay too close.
constexpr int64_t kAhead = 2048;
template <class T>
LT_SIMD void prefetch_32(const T* p) {
  for (int64_t at = 0; at < 32 * static_cast<int64_t>(sizeof(T)); at += 64)
    prefetch(p, kAhead + at);
}

constexpr int kWide = kLanes / 2;  // doubles of the native width
typedef double vd __attribute__((vector_size(4 * LT_LANES)));

struct Doubles {
  vd low, high;
};

// gcc 12 goes through memory for __builtin_convertvector of half a vector.
LT_SIMD Doubles widen(vf32 x) {
#if defined(__AVX512F__)
  return {(vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x)),
          (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1))};
#elif defined(__AVX2__)
  return {(vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x)),
          (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1))};
#elif defined(__x86_64__)
  return {(vd)_mm_cvtps_pd((__m128)x), (vd)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x))};
#elif defined(__aarch64__)
  return {(vd)vcvt_f64_f32(vget_low_f32((float32x4_t)x)), (vd)vcvt_high_f64_f32((float32x4_t)x)};
#endif
}

// x y is exact, so one rounding or two is the same.
LT_SIMD vd add_product(vd sum, vd x, vd y) {
#if defined(__AVX512F__)
  return (vd)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)sum);
#elif defined(__AVX2__)
  return (vd)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)sum);
#else
  return sum + x * y;
#endif
}

struct Sums {
  vd part[kSums / kWide] = {};

  // The row that holds elements [at, at + kLanes) of 32.
  inline __attribute__((always_inline)) void add(int at, vf32 x) {
    const Doubles d = widen(x);
    part[at / kWide] += d.low;
    part[at / kWide + 1] += d.high;
  }
  inline __attribute__((always_inline)) void add_products(int at, vf32 x, vf32 y) {
    const Doubles c = widen(x), d = widen(y);
    part[at / kWide] = add_product(part[at / kWide], c.low, d.low);
    part[at / kWide + 1] = add_product(part[at / kWide + 1], c.high, d.high);
  }
  inline __attribute__((always_inline)) double fold() const {
    double sums[kSums];
    __builtin_memcpy(sums, part, sizeof sums);
    return fold_sums(sums);
  }
};

}  // namespace
}  // namespace lowtide::curvature
