// SPDX-License-Identifier: Apache-2.0
// Tiles of 128 codes on AVX-512. For *_simd.cc files only.
//
// 128 elements share one Philox tile of 64 words: word i rounds elements i and 64 + i
// (random::sr16). Their sums are joined to 32 words of 16 bits before anything else is done to
// them, so that zero points, clamps and packing cost half as much as on blocks of 32, and stores
// fill a cache line.
#pragma once
#include "quant/group_simd.h"

#if defined(__AVX512F__)
#define LT_GROUP_TILES 1

namespace lowtide::quant {
namespace {

constexpr int kTile = 128;

// Within 128-bit lanes: even bytes, then odd ones.
LT_SIMD __m512i deinterleave(__m512i x) {
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1,
                                                                     3, 5, 7, 9, 11, 13, 15)));
}

// random::tile_words for the tiles of a matrix.
class TileNoise {
 public:
  inline __attribute__((always_inline)) TileNoise(random::Key key, uint32_t param, uint32_t role)
      : key_(key), param_(param), role_(role), shared_(0, key_, param, role) {}

  inline __attribute__((always_inline)) void words(uint64_t tile, vu32 x[4]) {
    if (__builtin_expect(tile >> 28 != shared_.high, 0))
      shared_ = random::SharedWords(tile, key_, param_, role_);
    if (__builtin_expect(random::is_rounding(role_), 1))
      random::tile_words_of<random::kRoundsSr>(tile, 0, key_, shared_, x);
    else
      other_role(tile, x);
  }

 private:
  __attribute__((noinline)) void other_role(uint64_t tile, vu32 x[4]) const {
    random::tile_words_of<random::kRounds>(tile, 0, key_, shared_, x);
  }

  random::KeySchedule key_;
  uint32_t param_, role_;
  random::SharedWords shared_;
};

LT_SIMD void store_line(uint8_t* p, __m512i x) { _mm512_storeu_si512(p, x); }

// Tiles of packed codes, times 2^16 in vectors.
template <int kBits>
class TileCodes {
 public:
  inline __attribute__((always_inline)) explicit TileCodes(const uint8_t* p) : bytes_(p) {
    if constexpr (kBits == 4) {
      const __m512i x = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
      _mm512_store_si512(nibbles_, _mm512_and_si512(x, mask));
      _mm512_store_si512(nibbles_ + 64, _mm512_and_si512(_mm512_srli_epi16(x, 4), mask));
    }
  }
  // Of the elements 16 v to 16 v + 15. Broadcasting from memory and moving bytes within lanes
  // costs half of widening and shifting.
  inline __attribute__((always_inline)) vi32 operator()(int v) const {
    const uint8_t* p = kBits == 8 ? bytes_ + 16 * v : nibbles_ + 64 * (v % 2) + 16 * (v / 2);
    const __m512i up = (__m512i)((iota() << 16) | 0x80008080u);  // zeros around byte i of 16
    return (vi32)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)),
                                     up);
  }

 private:
  const uint8_t* bytes_;
  alignas(64) uint8_t nibbles_[kBits == 4 ? 128 : 1];
};

// The bytes of 128 codes: clamped from below, and to 4 bits where they are packed.
template <int kBits>
LT_SIMD void store_joined(uint8_t* p, const __m512i w[4], int lo) {
  const __m512i floor = _mm512_set1_epi8(static_cast<char>(lo));
  __m512i a = _mm512_max_epu8(_mm512_packus_epi16(w[0], w[1]), floor);
  __m512i b = _mm512_max_epu8(_mm512_packus_epi16(w[2], w[3]), floor);
  if constexpr (kBits == 8) {
    a = deinterleave(a), b = deinterleave(b);
    const __m512i even =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 16, 20, 24, 28, 17, 21, 25, 29);
    const __m512i odd =
        _mm512_setr_epi32(2, 6, 10, 14, 3, 7, 11, 15, 18, 22, 26, 30, 19, 23, 27, 31);
    store_line(p, _mm512_permutex2var_epi32(a, even, b));
    store_line(p + 64, _mm512_permutex2var_epi32(a, odd, b));
  } else {
    const __m512i top = _mm512_set1_epi8(15);
    a = _mm512_min_epu8(a, top), b = _mm512_min_epu8(b, top);
    const __m512i low = _mm512_unpacklo_epi64(a, b), high = _mm512_unpackhi_epi64(a, b);
    const __m512i codes = deinterleave(_mm512_or_si512(low, _mm512_slli_epi16(high, 4)));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store_line(p, _mm512_permutexvar_epi32(order, codes));
  }
}

// Stores clamp(start + floor((X + r16) / 2^16), lo, 2^bits - 1), where X = fixed(v) is that of the
// elements 16 v to 16 v + 15 and start(v) is where they start, times 2^16.
template <int kBits, class Fixed, class Start>
LT_SIMD void encode_tile_sr(uint8_t* p, const vu32 words[4], int lo, const Fixed& fixed,
                            const Start& start) {
  const __m512i low_half = _mm512_set1_epi32(0xffff);
  const __m512i to_low =
      _mm512_broadcast_i32x4(_mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15));
  __m512i w[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    // noise below, start above
    const __m512i a =
        _mm512_ternarylogic_epi32((__m512i)words[j], low_half, (__m512i)start(j), 0xea);
    const __m512i b = _mm512_mask_shuffle_epi8((__m512i)start(4 + j), 0x3333333333333333u,
                                               (__m512i)words[j], to_low);
    const __m512i x = _mm512_add_epi32((__m512i)fixed(j), a);
    const __m512i y = _mm512_add_epi32((__m512i)fixed(4 + j), b);
    w[j] = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(x, 16), y);
  }
  store_joined<kBits>(p, w, lo);
}

// Stores clamp(steps + zero, lo, 2^bits - 1): |steps| < 2^15 - 256.
template <int kBits, class Steps>
LT_SIMD void encode_tile(uint8_t* p, int zero, int lo, const Steps& steps) {
  const __m512i z = _mm512_set1_epi16(static_cast<short>(zero));
  const __m512i floor = _mm512_set1_epi8(static_cast<char>(lo));
  __m512i bytes[2];
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m512i a = _mm512_packs_epi32((__m512i)steps(4 * h), (__m512i)steps(4 * h + 1));
    const __m512i b = _mm512_packs_epi32((__m512i)steps(4 * h + 2), (__m512i)steps(4 * h + 3));
    bytes[h] =
        _mm512_max_epu8(_mm512_packus_epi16(_mm512_add_epi16(a, z), _mm512_add_epi16(b, z)), floor);
  }
  if constexpr (kBits == 8) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store_line(p, _mm512_permutexvar_epi32(order, bytes[0]));
    store_line(p + 64, _mm512_permutexvar_epi32(order, bytes[1]));
  } else {
    const __m512i top = _mm512_set1_epi8(15);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {  // the upper four bytes of eight become upper nibbles
      const __m512i x = _mm512_min_epu8(bytes[h], top);
      bytes[h] = _mm512_or_si512(x, _mm512_srli_epi64(x, 28));
    }
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
    store_line(p, _mm512_permutex2var_epi32(bytes[0], order, bytes[1]));
  }
}

}  // namespace
}  // namespace lowtide::quant
#endif
