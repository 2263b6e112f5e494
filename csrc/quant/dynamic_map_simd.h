// SPDX-License-Identifier: Apache-2.0
// dynamic_map_scalar.h on vectors, the same bits. For *_simd.cc files only.
#pragma once
#include "base/simd.h"
#include "quant/dynamic_map_scalar.h"

namespace lowtide::quant {
namespace {

constexpr int kDynamicStep = 4 * kLanes;  // elements that encoding takes at a time

#if defined(__AVX512F__)
// Tables indexed by exponents directly: the low bits of a float's exponent field, which is all that
// a permute looks at, tell the regions apart.
struct alignas(64) DynamicExponents {
  // Decoding: unsigned by the exponent of k + 3/2; signed by that of 256 d, d = code - 127, whose
  // low bits tell 0 from all others (-> 0) and |d| = 1, 2, 4 .. apart. base: what makes 256 d into
  // 256 (|d| + 1/2 - offset), exactly, with the sign of d to come.
  float offset[16], slope[16];
  float base[16], signed_slope[16];
  // For a in [2^-31, 2): carry[e] lifts the exponent field of magnitudes at or above the boundary
  // that lies between 2^e and 2^(e+1) (there is one at most, and none in the next binade). The
  // lifted exponent then selects the constants.
  uint32_t carry[2][32];
  float scale[2][32], shift[2][32], last[2][32];
  // The same for the segments of DynamicLines, whose ends lie as far apart.
  uint32_t carry_line[2][32];
  float cross_slope[2][32], cross[2][32], inner_slope[2][32], inner[2][32];
};

constexpr DynamicExponents make_dynamic_exponents() {
  DynamicExponents t{};
  for (int s = 0; s < 2; ++s) {
    for (int r = 0; r < kDynamicRegions; ++r) {
      if (s == 0) t.offset[(r + 127) % 16] = kDynamic.offset[s][r];
      if (s == 0) t.slope[(r + 127) % 16] = kDynamic.slope[s][r];
      if (s == 1 && r > 0) t.base[(r + 134) % 16] = 256 * (0.5f - kDynamic.offset[s][r]);
      if (s == 1 && r > 0) t.signed_slope[(r + 134) % 16] = kDynamic.slope[s][r];
    }
    for (uint32_t e = 0; e < 32; ++e) {  // exponent field 96 + e
      int r = 0;
      for (; r < 8; ++r) {
        const uint32_t bits = __builtin_bit_cast(uint32_t, kDynamic.boundary[s][r]);
        if (bits >> 23 == 96 + e) t.carry[s][e] = 0x800000u - (bits & 0x7fffffu);
        if (bits >> 23 >= 96 + e) break;
      }
      t.scale[s][e] = kDynamic.scale[s][r];
      t.shift[s][e] = kDynamic.shift[s][r];
      t.last[s][e] = kDynamic.last[s][r];
      int j = 0;
      for (; j < 7; ++j) {
        const uint32_t bits = __builtin_bit_cast(uint32_t, kDynamicLines.end[s][j]);
        if (bits >> 23 == 96 + e) t.carry_line[s][e] = 0x800000u - (bits & 0x7fffffu);
        if (bits >> 23 >= 96 + e) break;
      }
      t.cross_slope[s][e] = kDynamicLines.cross_slope[s][j];
      t.cross[s][e] = kDynamicLines.cross[s][j];
      t.inner_slope[s][e] = kDynamicLines.inner_slope[s][j];
      t.inner[s][e] = kDynamicLines.inner[s][j];
    }
  }
  return t;
}

constexpr DynamicExponents kExponents = make_dynamic_exponents();

// Floats 2^23 + byte * 2^(8 * at) of 16 bytes: a broadcast on the load port and one shuffle into a
// constant, instead of an extension, a conversion and an addition.
template <int at>
LT_SIMD vf32 load_bytes_biased(const uint8_t* p) {
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
  const vu32 place = iota() << (8 * at);
  return (vf32)_mm512_mask_shuffle_epi8((__m512i)splat(0x1p23f), 0x1111111111111111ull << at, bytes,
                                        (__m512i)place);
}

LT_SIMD vf32 lookup32(const float* table, vu32 index) {
  return (vf32)_mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)index,
                                      _mm512_load_ps(table + 16));
}
#else
// table[r % 8].
LT_SIMD vf32 lookup8(const float* table, vi32 r) {
#if defined(__AVX2__)
  return (vf32)_mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)r);
#elif defined(__aarch64__)
  const uint8x16x2_t bytes = vld1q_u8_x2((const uint8_t*)table);
  const uint32x4_t index = (uint32x4_t)((r & 7) * 0x04040404 + 0x03020100);
  return (vf32)vqtbl2q_u8(bytes, (uint8x16_t)index);
#else
  vf32 out;
  for (int i = 0; i < kLanes; ++i) out[i] = table[r[i] & 7];
  return out;
#endif
}

// Regions 0 and 8 in one entry: in the signed map the constants of 8 give 0 for the zero code too.
struct alignas(64) DynamicDecode {
  float offset[2][8], slope[2][8];
};

constexpr DynamicDecode make_dynamic_decode() {
  DynamicDecode t{};
  for (int s = 0; s < 2; ++s)
    for (int r = 1; r < kDynamicRegions; ++r) {
      t.offset[s][r % 8] = kDynamic.offset[s][r];
      t.slope[s][r % 8] = kDynamic.slope[s][r];
    }
  return t;
}

constexpr DynamicDecode kDecode = make_dynamic_decode();
#endif

// Decodes the codes of one block.
template <bool is_signed>
class DynamicDecoder {
 public:
#if defined(__AVX512F__)
  inline __attribute__((always_inline)) explicit DynamicDecoder(float absmax)
      : slope_(load<vf32>(is_signed ? kExponents.signed_slope : kExponents.slope) * absmax) {}
#else
  inline __attribute__((always_inline)) explicit DynamicDecoder(float absmax) {
    for (int i = 0; i < 8; i += kLanes)
      store(slope_ + i,
            load<vf32>(kDecode.slope[is_signed] + i) * absmax * (is_signed ? 256.0f : 1.0f));
  }
#endif

  inline __attribute__((always_inline)) vf32 operator()(const uint8_t* codes) const {
#if defined(__AVX512F__)
    if (is_signed) {
      const vf32 d = load_bytes_biased<1>(codes) - (0x1p23f + 256 * kDynamicZeroSigned);
      const __m512i e = (__m512i)(as_u(d) >> 23);
      // base with the sign of d: base ^ (d & sign).
      const __m512i base = _mm512_permutexvar_epi32(e, _mm512_load_si512(kExponents.base));
      const __m512i shift =
          _mm512_ternarylogic_epi32(base, (__m512i)d, (__m512i)splat_u(0x80000000u), 0x78);
      return (d + (vf32)shift) * (vf32)_mm512_permutexvar_ps(e, (__m512)slope_);
    }
    const vf32 f = load_bytes_biased<0>(codes) - (0x1p23f - 1.5f);
    const __m512i e = (__m512i)(as_u(f) >> 23);
    const vf32 offset = (vf32)_mm512_permutexvar_ps(e, _mm512_load_ps(kExponents.offset));
    return (f - offset) * (vf32)_mm512_permutexvar_ps(e, (__m512)slope_);
#else
    const vi32 code = load_bytes(codes);
    const vi32 d = is_signed ? code - kDynamicZeroSigned : code;
    const vf32 f = to_float(is_signed ? abs_i(d) : d) + (is_signed ? 0.5f : 1.5f);
    const vi32 r = as_i(as_u(f) >> 23) - (is_signed ? 126 : 127);
    vf32 value = (f - lookup8(kDecode.offset[is_signed], r)) * lookup8(slope_, r);
    if (!is_signed) value = as_f(as_u(value) & (vu32)(code > 0));
    return is_signed ? with_sign(value, as_f((vu32)d)) : value;
#endif
  }

 private:
#if defined(__AVX512F__)
  vf32 slope_;
#else
  alignas(32) float slope_[8];
#endif
};

// fma_rn(a, slope, at). Where it is emulated there is a cheaper way, and the same: the product has
// 48 bits, the sum is at most 18 times it, so it is exact in double and rounded once. (The inner
// line of the unsigned segment 0 may be another float far below the crossing, where it is not the
// smaller one.)
LT_SIMD vf32 dynamic_line(vf32 a, vf32 slope, vf32 at) {
#if defined(__AVX2__) || defined(__aarch64__)
  return fma_rn(a, slope, at);
#else
  const vf64 product = __builtin_convertvector(a, vf64) * __builtin_convertvector(slope, vf64);
  return __builtin_convertvector(product + __builtin_convertvector(at, vf64), vf32);
#endif
}

// Smallest magnitude that the AVX-512 tables tell from others; it is deep in region 0.
constexpr float kDynamicFloor = 0x1p-31f;

#if defined(__AVX512F__)
// Index of what holds for a in [2^-31, 2), given by exponents and by where it begins.
LT_SIMD vu32 dynamic_lifted(vf32 a, const uint32_t* carries) {
  const vu32 carry = (vu32)_mm512_permutex2var_epi32(
      _mm512_load_si512(carries), (__m512i)(as_u(a) >> 23), _mm512_load_si512(carries + 16));
  return (as_u(a) + carry) >> 23;
}
// abs_f(a), at least the floor: the larger magnitude of the two, without sign.
LT_SIMD vf32 dynamic_floored(vf32 a) {
  return (vf32)_mm512_range_ps((__m512)a, (__m512)splat(kDynamicFloor), 0b1011);
}
#else
// How many of bounds[0 .. 7] are at or below a in [0, 2); they lie a decade apart. The exponent and
// mantissa of a float read as one integer approximate its logarithm from below within 0.026 (base
// 10): `offset` makes the estimate never too high and at most one too low, and one comparison
// settles it.
LT_SIMD vi32 dynamic_interval(vf32 a, const float* bounds, float offset) {
  constexpr float kLog10 = 0x1.344136p-2f * 0x1p-23f;  // log10(2) per unit of the exponent field
  const vf32 estimate = to_float(as_i(as_u(a))) * kLog10 + (offset - 127 * 0x1.344136p-2f);
  const vi32 below = __builtin_convertvector(max_f(estimate, vf32{}), vi32);
  return below - (a >= lookup8(bounds, below));
}
// With 0.2 to spare at every boundary of regions and 0.35 at every end of segments.
constexpr float kDynamicRegionOffset = 7.3f, kDynamicSegmentOffset = 6.65f;
#endif

// floor(a * scale + shift) clamped to the last bin of the region, for a in [0, 2).
template <bool is_signed>
LT_SIMD vf32 dynamic_bin(vf32 a) {
#if defined(__AVX512F__)
  const vu32 r = dynamic_lifted(a, kExponents.carry[is_signed]);
  const vf32 t =
      fma_rn(a, lookup32(kExponents.scale[is_signed], r), lookup32(kExponents.shift[is_signed], r));
  return min_f(t, lookup32(kExponents.last[is_signed], r));
#else
  const vi32 r = dynamic_interval(a, kDynamic.boundary[is_signed], kDynamicRegionOffset);
  const vf32 t =
      dynamic_line(a, lookup8(kDynamic.scale[is_signed], r), lookup8(kDynamic.shift[is_signed], r));
  return min_f(t, lookup8(kDynamic.last[is_signed], r));
#endif
}

// dynamic_nearest, but for the zero code and the clamp at 0: signed bins.
template <bool is_signed>
LT_SIMD vi32 dynamic_nearest_bins(vf32 y) {
  if (!is_signed)
    return __builtin_convertvector(dynamic_bin<false>(max_f(y, splat(kDynamicFloor))), vi32);
#if defined(__AVX512F__)
  const vf32 a = dynamic_floored(y);
#else
  const vf32 a = abs_f(y);
#endif
  return __builtin_convertvector(with_sign(dynamic_bin<true>(a), y), vi32);
}

// dynamic_stochastic in the same way.
template <bool is_signed>
LT_SIMD vi32 dynamic_stochastic_bins(vf32 y, vi32 r16) {
  const vf32 a = is_signed ? abs_f(y) : max_f(y, vf32{});
#if defined(__AVX512F__)
  const vu32 j = dynamic_lifted(dynamic_floored(a), kExponents.carry_line[is_signed]);
  const vf32 cross = fma_rn(a, lookup32(kExponents.cross_slope[is_signed], j),
                            lookup32(kExponents.cross[is_signed], j));
  const vf32 inner = fma_rn(a, lookup32(kExponents.inner_slope[is_signed], j),
                            lookup32(kExponents.inner[is_signed], j));
#else
  const vi32 j = dynamic_interval(a, kDynamicLines.end[is_signed], kDynamicSegmentOffset);
  const vf32 cross = dynamic_line(a, lookup8(kDynamicLines.cross_slope[is_signed], j),
                                  lookup8(kDynamicLines.cross[is_signed], j));
  const vf32 inner = dynamic_line(a, lookup8(kDynamicLines.inner_slope[is_signed], j),
                                  lookup8(kDynamicLines.inner[is_signed], j));
#endif
  const vi32 k = (to_int_rne(min_f(cross, inner)) + r16) >> 16;
  if (!is_signed) return k;
#if defined(__AVX512F__)  // gcc spells a negation under a mask out
  const __mmask16 negative = _mm512_movepi32_mask((__m512i)y);
  return (vi32)_mm512_mask_sub_epi32((__m512i)k, negative, _mm512_setzero_si512(), (__m512i)k);
#else
  const vi32 sign = as_i(as_u(y)) >> 31;
  return (k ^ sign) - sign;
#endif
}

// Codes of kDynamicStep elements; x(i) gives elements [i, i + kLanes).
template <bool is_signed, class X>
LT_SIMD void dynamic_encode_step(uint8_t* codes, float inverse, const X& x) {
  vi32 code[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) code[v] = dynamic_nearest_bins<is_signed>(x(v * kLanes) * inverse);
  store_bytes4(codes, code, is_signed ? kDynamicZeroSigned : 0);  // 127 - 128 saturates to 0
}

// dynamic_encode_positive: x >= 0, and positive ones are lifted into region 1.
template <class X>
LT_SIMD void dynamic_encode_positive_step(uint8_t* codes, float inverse, const X& x) {
  const vf32 first = splat(kDynamic.boundary[false][0]);
  vi32 code[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const vf32 y = x(v * kLanes) * inverse;
#if defined(__AVX512F__)
    const __mmask16 positive = _mm512_test_epi32_mask((__m512i)y, (__m512i)y);
    const vf32 a = (vf32)_mm512_maskz_max_ps(positive, (__m512)y, (__m512)first);
#else
    const vf32 a = as_f(as_u(max_f(y, first)) & (vu32)(y > 0.0f));
#endif
    code[v] = __builtin_convertvector(dynamic_bin<false>(a), vi32);
  }
  store_bytes4(codes, code);
}

}  // namespace
}  // namespace lowtide::quant
