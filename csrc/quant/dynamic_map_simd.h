// SPDX-License-Identifier: Apache-2.0
// dynamic_map_scalar.h on kLanes elements. For *_simd.cc files only.
#pragma once
#include "base/simd.h"
#include "quant/dynamic_map_scalar.h"

namespace lowtide::quant {
namespace {

// table[r] for r in 0..8.
LT_SIMD vf32 lookup9(const float* table, vi32 r) {
#if defined(__AVX512F__)
  return (vf32)_mm512_permutexvar_ps((__m512i)r, _mm512_load_ps(table));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)r);
  return (vf32)_mm256_blendv_ps(low, _mm256_broadcast_ss(table + 8),
                                _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)r, 28)));
#elif defined(__aarch64__)
  const uint8x16x4_t bytes = vld1q_u8_x4((const uint8_t*)table);
  const uint32x4_t index = (uint32x4_t)(r * 0x04040404 + 0x03020100);
  return (vf32)vqtbl4q_u8(bytes, (uint8x16_t)index);
#else
  vf32 out;
  for (int i = 0; i < kLanes; ++i) out[i] = table[r[i]];
  return out;
#endif
}

template <bool is_signed>
LT_SIMD vf32 dynamic_values(vi32 code) {
  const vi32 d = is_signed ? code - kDynamicZeroSigned : code;
  const vi32 sign = d >> 31;
  const vf32 f = to_float(is_signed ? (d ^ sign) - sign : d) + (is_signed ? 0.5f : 1.5f);
  const vi32 r = as_i(as_u(f) >> 23) - (is_signed ? 126 : 127);
  const vf32 w = as_f((as_u(f) & 0x007fffffu) | 0x3f800000u) - 1.0f;
  const vf32 value = lookup9(kDynamic.slope, r) * w + lookup9(kDynamic.base, r);
  return is_signed ? as_f(as_u(value) ^ ((vu32)sign & 0x80000000u)) : value;
}

template <bool is_signed>
LT_SIMD vf32 dynamic_decode_row(const uint8_t* codes, float absmax) {
  return dynamic_values<is_signed>(load_bytes(codes)) * absmax;
}

// The exponent and mantissa of a float read as one integer approximate its logarithm from below
// within 0.026 (base 10). Shifted by 7.3 the estimate is never above the region, and below it by at
// most one, at every boundary with 0.2 to spare; one comparison settles it.
template <bool is_signed>
LT_SIMD vi32 dynamic_regions(vf32 a) {
  constexpr float kLog10 = 0x1.344136p-2f * 0x1p-23f;  // log10(2) per unit of the exponent field
  constexpr float kOffset = 7.3f - 127 * 0x1.344136p-2f;
  const vf32 estimate = to_float(as_i(as_u(a))) * kLog10 + kOffset;
  const vi32 r = __builtin_convertvector(max_f(estimate, vf32{}), vi32);
  return r - (a >= lookup9(kDynamic.boundary[is_signed], r));
}

// y is x * inverse; returns the code.
template <bool is_signed>
LT_SIMD vi32 dynamic_codes(vf32 y) {
  const vf32 a = is_signed ? abs_f(y) : max_f(y, vf32{});
  const vi32 r = dynamic_regions<is_signed>(a);
  const vf32 t = a * lookup9(kDynamic.scale[is_signed], r) + lookup9(kDynamic.shift[is_signed], r);
  // Clamped before it is truncated: min and floor commute for an integer bound.
  const vi32 k = __builtin_convertvector(min_f(t, lookup9(kDynamic.last[is_signed], r)), vi32);
  if (!is_signed) return k;
  const vi32 sign = as_i(as_u(y)) >> 31;
  return max_i(((k ^ sign) - sign) + kDynamicZeroSigned, vi32{});
}

template <bool is_signed>
LT_SIMD void dynamic_encode_row(uint8_t* codes, vf32 x, float inverse) {
  store_bytes(codes, dynamic_codes<is_signed>(x * inverse));
}

LT_SIMD void dynamic_encode_positive_row(uint8_t* codes, vf32 x, float inverse) {
  const vf32 y = x * inverse;
  const vi32 k = dynamic_codes<false>(y);
  store_bytes(codes, max_i(k, (vi32)(y > 0.0f) & 1));
}

// Largest of the lanes, which hold float bits without sign.
LT_SIMD float largest_lane(vi32 bits) {
  int32_t lane[kLanes];
  store(lane, bits);
  int32_t top = lane[0];
  for (int i = 1; i < kLanes; ++i) top = top < lane[i] ? lane[i] : top;
  return bits_float(static_cast<uint32_t>(top));
}

}  // namespace
}  // namespace lowtide::quant
