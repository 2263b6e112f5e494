// SPDX-License-Identifier: Apache-2.0
// The vectors that the *_simd.cc files are written in: GCC vector extensions of the ISA's native
// width (wider ones are lowered badly by gcc 12) plus the few operations they lack. Included only
// by files compiled once per ISA; everything has internal linkage so that no code built for a wide
// ISA can be merged into baseline code.
//
// kLanes is 16 (AVX-512), 8 (AVX2) or 4 (baseline x86-64, NEON). Kernels walk rows of 16 elements
// in steps of kLanes, so every ISA does the same arithmetic on the same element.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "base/hd.h"

#if defined(__AVX512F__)
#define LT_LANES 16
#elif defined(__AVX2__)
#define LT_LANES 8
#else
#define LT_LANES 4
#endif

namespace lowtide {
namespace {

#define LT_SIMD static inline __attribute__((always_inline, unused))

constexpr int kLanes = LT_LANES;

typedef float vf32 __attribute__((vector_size(4 * LT_LANES)));
typedef int32_t vi32 __attribute__((vector_size(4 * LT_LANES)));
typedef uint32_t vu32 __attribute__((vector_size(4 * LT_LANES)));
typedef uint16_t vu16 __attribute__((vector_size(2 * LT_LANES)));
typedef uint8_t vu8 __attribute__((vector_size(LT_LANES)));
typedef int8_t vi8 __attribute__((vector_size(LT_LANES)));
typedef double vf64 __attribute__((vector_size(8 * LT_LANES)));
typedef int64_t vi64 __attribute__((vector_size(8 * LT_LANES)));
typedef uint64_t vu64 __attribute__((vector_size(8 * LT_LANES)));

template <class V, class T>
LT_SIMD V load(const T* p) {
  static_assert(sizeof(V) == sizeof(T) * kLanes);
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
LT_SIMD void store(T* p, V v) {
  static_assert(sizeof(V) == sizeof(T) * kLanes);
  __builtin_memcpy(p, &v, sizeof v);
}

LT_SIMD vf32 splat(float x) { return x - vf32{}; }
LT_SIMD vi32 splat_i(int32_t x) { return x - vi32{}; }
LT_SIMD vu32 splat_u(uint32_t x) { return x - vu32{}; }

LT_SIMD vu32 as_u(vf32 x) { return (vu32)x; }
LT_SIMD vf32 as_f(vu32 x) { return (vf32)x; }
LT_SIMD vi32 as_i(vu32 x) { return (vi32)x; }

LT_SIMD vu32 iota() {
  vu32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<uint32_t>(i);
  return v;
}

LT_SIMD vf32 to_float(vi32 x) { return __builtin_convertvector(x, vf32); }

// kLanes bytes, zero extended (gcc 12 takes __builtin_convertvector apart, byte by byte).
LT_SIMD vi32 load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#elif defined(__x86_64__)
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m128i words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
  return (vi32)_mm_unpacklo_epi16(words, _mm_setzero_si128());
#elif defined(__aarch64__)
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  const uint16x8_t words = vmovl_u8(vcreate_u8(four));
  return (vi32)vmovl_u16(vget_low_u16(words));
#endif
}

// Nearest, ties to even; |x| < 2^31.
LT_SIMD vi32 to_int_rne(vf32 x) {
#if defined(__AVX512F__)
  return (vi32)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (vi32)_mm256_cvtps_epi32((__m256)x);
#elif defined(__x86_64__)
  return (vi32)_mm_cvtps_epi32((__m128)x);
#elif defined(__aarch64__)
  return (vi32)vcvtnq_s32_f32((float32x4_t)x);
#endif
}

LT_SIMD vf32 sqrt_rn(vf32 x) {
#if defined(__AVX512F__)
  return (vf32)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vf32)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
  return (vf32)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (vf32)vsqrtq_f32((float32x4_t)x);
#endif
}

// a*b+c with one rounding on every target. Without FMA hardware: the product is exact in double;
// rounding the sum to odd makes the second rounding, to float, the only one that counts. Out of
// line: inlined into a polynomial it is seven times slower to compile and a quarter slower to run.
#if !defined(__AVX2__) && !defined(__aarch64__)
static __attribute__((noinline, unused)) vf32 fma_rn_emulated(vf32 a, vf32 b, vf32 c) {
  const vf64 p = __builtin_convertvector(a, vf64) * __builtin_convertvector(b, vf64);
  const vf64 d = __builtin_convertvector(c, vf64);
  const vf64 s = p + d;
  const vf64 t = s - p;
  const vf64 e = (p - (s - t)) + (d - t);
  vi64 bits = (vi64)s;
  const vi64 up = (vi64)((e > 0.0) == (s > 0.0));  // the error points away from zero
  const vi64 inexact_even = (vi64)((e > 0.0) | (e < 0.0)) & (vi64)((bits & 1) == 0);
  bits += inexact_even & ((up & 1) - (~up & 1));
  return __builtin_convertvector((vf64)bits, vf32);
}
#endif

LT_SIMD vf32 fma_rn(vf32 a, vf32 b, vf32 c) {
#if defined(__AVX512F__)
  return (vf32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vf32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return fma_rn_emulated(a, b, c);
#endif
}

LT_SIMD vf32 abs_f(vf32 x) { return as_f(as_u(x) & 0x7fffffffu); }
// As `a < b ? b : a`: on NaN in `a` or `b` the result is `a` on every target. (The instructions
// return their second operand then, and gcc does not use them for the expression.)
LT_SIMD vf32 max_f(vf32 a, vf32 b) {
#if defined(__AVX512F__)
  return (vf32)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
  return (vf32)_mm256_max_ps((__m256)b, (__m256)a);
#elif defined(__x86_64__)
  return (vf32)_mm_max_ps((__m128)b, (__m128)a);
#else
  return a < b ? b : a;
#endif
}
LT_SIMD vf32 min_f(vf32 a, vf32 b) {
#if defined(__AVX512F__)
  return (vf32)_mm512_min_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
  return (vf32)_mm256_min_ps((__m256)b, (__m256)a);
#elif defined(__x86_64__)
  return (vf32)_mm_min_ps((__m128)b, (__m128)a);
#else
  return b < a ? b : a;
#endif
}
LT_SIMD vi32 max_i(vi32 a, vi32 b) { return a < b ? b : a; }
LT_SIMD vi32 min_i(vi32 a, vi32 b) { return b < a ? b : a; }
LT_SIMD vu32 max_u(vu32 a, vu32 b) {
#if defined(__AVX512F__)
  return (vu32)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vu32)_mm256_max_epu32((__m256i)a, (__m256i)b);
#else
  return a < b ? b : a;
#endif
}
LT_SIMD vi32 abs_i(vi32 x) {
#if defined(__AVX512F__)
  return (vi32)_mm512_abs_epi32((__m512i)x);
#elif defined(__AVX2__)
  return (vi32)_mm256_abs_epi32((__m256i)x);
#else
  const vi32 sign = x >> 31;
  return (x ^ sign) - sign;
#endif
}
// x >= 0 with the sign of y.
LT_SIMD vf32 with_sign(vf32 x, vf32 y) {
#if defined(__AVX512F__)  // x | (y & mask) in one instruction
  return (vf32)_mm512_ternarylogic_epi32((__m512i)x, (__m512i)y, (__m512i)splat_u(0x80000000u),
                                         0xf8);
#else
  return as_f(as_u(x) | (as_u(y) & 0x80000000u));
#endif
}

LT_SIMD bool any(vi32 mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)mask) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#endif
}

// 32x32 -> 64 bit products.
LT_SIMD void mul_hi_lo(vu32 a, uint32_t m, vu32& hi, vu32& lo) {
#if defined(__AVX512F__)
  const __m512i mm = _mm512_set1_epi32(static_cast<int>(m));
  const __m512i even = _mm512_mul_epu32((__m512i)a, mm);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), mm);
  hi = (vu32)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
  lo = (vu32)_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__)
  const __m256i mm = _mm256_set1_epi32(static_cast<int>(m));
  const __m256i even = _mm256_mul_epu32((__m256i)a, mm);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), mm);
  hi = (vu32)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  lo = (vu32)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
  const vu64 p = __builtin_convertvector(a, vu64) * static_cast<uint64_t>(m);
  hi = __builtin_convertvector(p >> 32, vu32);
  lo = a * m;
#endif
}

// The lanes of four vectors, plus `add`, as 4 * kLanes bytes, each saturated to [0, 255]; lanes and
// sums must fit in 16 bits.
LT_SIMD void store_bytes4(uint8_t* p, const vi32 x[4], int16_t add = 0) {
#if defined(__AVX512F__)
  const __m512i ab =
      _mm512_add_epi16(_mm512_packs_epi32((__m512i)x[0], (__m512i)x[1]), _mm512_set1_epi16(add));
  const __m512i cd =
      _mm512_add_epi16(_mm512_packs_epi32((__m512i)x[2], (__m512i)x[3]), _mm512_set1_epi16(add));
  // Packing interleaves the 128-bit lanes.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd)));
#elif defined(__AVX2__)
  const __m256i ab =
      _mm256_add_epi16(_mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]), _mm256_set1_epi16(add));
  const __m256i cd =
      _mm256_add_epi16(_mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]), _mm256_set1_epi16(add));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order));
#elif defined(__x86_64__)
  const __m128i ab =
      _mm_add_epi16(_mm_packs_epi32((__m128i)x[0], (__m128i)x[1]), _mm_set1_epi16(add));
  const __m128i cd =
      _mm_add_epi16(_mm_packs_epi32((__m128i)x[2], (__m128i)x[3]), _mm_set1_epi16(add));
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(ab, cd));
#elif defined(__aarch64__)
  const int16x8_t ab = vcombine_s16(vqmovn_s32((int32x4_t)x[0]), vqmovn_s32((int32x4_t)x[1]));
  const int16x8_t cd = vcombine_s16(vqmovn_s32((int32x4_t)x[2]), vqmovn_s32((int32x4_t)x[3]));
  const int16x8_t plus = vdupq_n_s16(add);
  vst1q_u8(p, vcombine_u8(vqmovun_s16(vaddq_s16(ab, plus)), vqmovun_s16(vaddq_s16(cd, plus))));
#endif
}

// A hint that `bytes` after p are about to be read (and maybe written); never faults, so p may lie
// past the end of its array.
LT_SIMD void prefetch(const void* p, int64_t bytes) {
  __builtin_prefetch((const void*)((uintptr_t)p + (uintptr_t)bytes));
}

// Largest of the lanes.
LT_SIMD uint32_t largest_lane(vu32 x) {
#pragma GCC unroll 4
  for (int d = kLanes / 2; d > 0; d /= 2) x = max_u(x, __builtin_shuffle(x, iota() ^ d));
  return x[0];
}

// bf16 bits <-> float.
LT_SIMD vf32 bf16_to_float(vu16 h) { return as_f(__builtin_convertvector(h, vu32) << 16); }
LT_SIMD vu16 float_to_bf16(vf32 x) {
  const vu32 u = as_u(x);
  const vu32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vu32 nan = (u >> 16) | 0x40u;
  const vu32 r = (u & 0x7fffffffu) > splat_u(0x7f800000u) ? nan : rounded;
  return __builtin_convertvector(r, vu16);
}
// Stochastic rounding, as in base/hd.h.
LT_SIMD vu16 float_to_bf16_sr(vf32 x, vu32 r16) {
  const vu32 u = as_u(x);
  const vu32 rounded = (u + r16) >> 16;
  const vu32 quiet = (u & 0x7fffffffu) > splat_u(0x7f800000u) ? (u >> 16) | 0x40u : u >> 16;
  const vu32 bits = (u & 0x7f800000u) == splat_u(0x7f800000u) ? quiet : rounded;
  return __builtin_convertvector(bits, vu16);
}

// IEEE half bits <-> float, as half_to_float and float_to_half of base/hd.h.
LT_SIMD vf32 half_to_float(vu16 h) {
#if defined(__AVX512F__)
  return (vf32)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return (vf32)_mm256_cvtph_ps((__m128i)h);
#else
  const vu32 w = __builtin_convertvector(h, vu32);
  const vu32 bits = (w & 0x7fffu) << 13;
  const vu32 finite = as_u(as_f(bits) * 0x1p112f);
  const vu32 magnitude = (w & 0x7c00u) == 0x7c00u ? bits | 0x7f800000u : finite;
  return as_f(magnitude | (w & 0x8000u) << 16);
#endif
}
LT_SIMD vu16 float_to_half(vf32 x) {
#if defined(__AVX512F__)
  return (vu16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (vu16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
  const vu32 u = as_u(x) & 0x7fffffffu;
  const vu32 small = as_u(as_f(u) + 0.5f) - 0x3f000000u;
  vu32 r = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
  r = u < 0x38800000u ? small : r;
  r = u >= 0x477ff000u ? splat_u(0x7c00u) : r;
  r = u > 0x7f800000u ? 0x7e00u | ((u >> 13) & 0x3ffu) : r;
  return __builtin_convertvector(r | (as_u(x) >> 16 & 0x8000u), vu16);
#endif
}

LT_SIMD vu16 float_to_half_sr(vf32 x, vu32 r16) {
  const vu32 u = as_u(x) & 0x7fffffffu;
  const vu32 small = ((vu32)to_int_rne(as_f(u) * 0x1p40f) + r16) >> 16;
  vu32 h = u < 0x38800000u ? small : (u - 0x38000000u + (r16 >> 3)) >> 13;
  h = h < 0x7c00u ? h : splat_u(0x7c00u);
  h = u > 0x7f800000u ? 0x7e00u | ((u >> 13) & 0x3ffu) : h;
  return __builtin_convertvector(h | (as_u(x) >> 16 & 0x8000u), vu16);
}

}  // namespace
}  // namespace lowtide
