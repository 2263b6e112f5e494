// SPDX-License-Identifier: Apache-2.0
// map4_scalar.h on vectors, the same bits. For *_simd.cc files only.
#pragma once
#include "base/simd.h"
#include "quant/map4_scalar.h"

namespace lowtide::quant {
namespace {

constexpr int kMap4Pack = 32;           // elements in 16 bytes
constexpr int kMap4Rows = 16 / kLanes;  // vectors in half of that
constexpr int kMap4Step = 8 * kLanes;   // elements that encoding takes at a time

struct alignas(64) Map4Tables {
  float value[2][16];
  // Where a magnitude |t| with |t| / 512 = i lies: above `base` - 7 midpoints, the first not
  // counted, and one more from `split` on. (Only i = 0 holds two midpoints.)
  int16_t base[32], split[32];
};

constexpr Map4Tables make_map4_tables() {
  Map4Tables t{};
  for (int c = 0; c < 16; ++c)
    for (int s = 0; s < 2; ++s) t.value[s][c] = map4_value(c, s != 0);
  for (int i = 0; i < 32; ++i) {
    t.base[i] = kMap4ZeroSigned;
    t.split[i] = 0x7fff;
    for (int j = 1; j < kMap4Midpoints; ++j) {
      if (map4_midpoint(j) <= 512 * i) ++t.base[i];
      if (map4_midpoint(j) / 512 == i && map4_midpoint(j) > 512 * i)
        t.split[i] = static_cast<int16_t>(map4_midpoint(j));
    }
  }
  return t;
}

constexpr Map4Tables kMap4 = make_map4_tables();

// Decodes the codes of one block.
template <bool is_signed>
class Map4Decoder {
 public:
  inline __attribute__((always_inline)) explicit Map4Decoder(float absmax) : absmax_(absmax) {
#if defined(__AVX512F__)
    table_ = load<vf32>(kMap4.value[is_signed]) * absmax;
#else
    for (int i = 0; i < 16; i += kLanes)
      store(table_ + i, load<vf32>(kMap4.value[is_signed] + i) * absmax);
#endif
  }

  // 32 elements from 16 bytes.
  inline __attribute__((always_inline)) void operator()(const uint8_t* codes, vf32* x) const {
#pragma GCC unroll 4
    for (int i = 0; i < kMap4Rows; ++i) {
      const vi32 bytes = load_bytes(codes + i * kLanes);
      x[i] = lookup(bytes);
      x[kMap4Rows + i] = lookup(bytes >> 4);
    }
  }

 private:
  // By the low four bits.
  inline __attribute__((always_inline)) vf32 lookup(vi32 code) const {
#if defined(__AVX512F__)
    return (vf32)_mm512_permutexvar_ps((__m512i)code, (__m512)table_);
#else
    if (!is_signed) return (to_float(code & 15) + 1.0f) * 0.0625f * absmax_;
#if defined(__AVX2__)
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table_), (__m256i)code);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table_ + 8), (__m256i)code);
    return (vf32)_mm256_blendv_ps(low, high, (__m256)(code << 28));
#elif defined(__aarch64__)
    const uint32x4_t index = (uint32x4_t)((code & 15) * 0x04040404 + 0x03020100);
    return (vf32)vqtbl4q_u8(vld1q_u8_x4((const uint8_t*)table_), (uint8x16_t)index);
#else
    vf32 out;
    for (int i = 0; i < kLanes; ++i) out[i] = table_[code[i] & 15];
    return out;
#endif
#endif
  }

  float absmax_;
#if defined(__AVX512F__)
  vf32 table_;
#else
  alignas(64) float table_[16];
#endif
};

// Pairs of 16-bit integers: the first in the low half of each lane.
typedef int16_t vi16p __attribute__((vector_size(4 * LT_LANES)));

LT_SIMD vi16p pair_words(vi32 low, vi32 high) {
#if defined(__AVX512F__)
  return (vi16p)_mm512_mask_blend_epi16(0xAAAAAAAAu, (__m512i)low, (__m512i)(high << 16));
#elif defined(__AVX2__)
  return (vi16p)_mm256_blend_epi16((__m256i)low, (__m256i)(high << 16), 0xAA);
#else
  return (vi16p)((low & 0xffff) | (high << 16));
#endif
}

// Pairs of codes in [0, 15] to a byte each, in lanes.
LT_SIMD vi32 pair_bytes(vi16p codes) {
#if defined(__AVX512F__)
  return (vi32)_mm512_madd_epi16((__m512i)codes, _mm512_set1_epi32(0x00100001));
#elif defined(__AVX2__)
  return (vi32)_mm256_madd_epi16((__m256i)codes, _mm256_set1_epi32(0x00100001));
#else
  const vu32 u = (vu32)codes;
  return (vi32)((u | u >> 12) & 255u);
#endif
}

LT_SIMD vi16p map4_signed_codes(vi16p t) {
#if defined(__AVX512F__)
  const __m512i a = _mm512_abs_epi16((__m512i)t), i = _mm512_srli_epi16(a, 9);
  const __m512i minus_one = _mm512_set1_epi16(-1);
  __m512i code = _mm512_permutexvar_epi16(i, _mm512_load_si512(kMap4.base));
  const __m512i split = _mm512_permutexvar_epi16(i, _mm512_load_si512(kMap4.split));
  code = _mm512_mask_sub_epi16(code, _mm512_cmpge_epi16_mask(a, split), code, minus_one);
  code = _mm512_mask_sub_epi16(
      code, _mm512_cmpge_epi16_mask(a, _mm512_set1_epi16(map4_midpoint(0))), code, minus_one);
  code = _mm512_mask_sub_epi16(code, _mm512_movepi16_mask((__m512i)t),
                               _mm512_set1_epi16(2 * kMap4ZeroSigned), code);
  return (vi16p)_mm512_max_epi16(code, _mm512_setzero_si512());
#else
  const vi16p sign = t >> 15, a = (t ^ sign) - sign;
  vi16p k = {};
#pragma GCC unroll 8
  for (int i = 0; i < kMap4Midpoints; ++i) k -= a > static_cast<int16_t>(map4_midpoint(i) - 1);
  const vi16p code = ((k ^ sign) - sign) + static_cast<int16_t>(kMap4ZeroSigned);
  return code & ~(code >> 15);
#endif
}

LT_SIMD vi16p map4_positive_codes(vi16p t) {
#if defined(__AVX512F__)
  return (vi16p)_mm512_subs_epu16((__m512i)t, _mm512_set1_epi16(1));
#else
  return t + (t > 0);
#endif
}

// Codes of kMap4Step elements; x(i) gives elements [i, i + kLanes).
template <bool is_signed, class X>
LT_SIMD void map4_encode_step(uint8_t* codes, float inverse, const X& x) {
  vi32 bytes[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int i = v / kMap4Rows * kMap4Pack + v % kMap4Rows * kLanes;
    const vi16p t = pair_words(to_int_rne(x(i) * inverse), to_int_rne(x(i + 16) * inverse));
    bytes[v] = pair_bytes(is_signed ? map4_signed_codes(t) : map4_positive_codes(t));
  }
  store_bytes4(codes, bytes);
}

}  // namespace
}  // namespace lowtide::quant
