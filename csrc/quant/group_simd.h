// SPDX-License-Identifier: Apache-2.0
// Blocks of 32 codes in vectors, and the noise of stochastic rounding. For *_simd.cc files only.
// Group starts are multiples of 32 columns, so a block is whole bytes in either width.
#pragma once
#include "quant/group_codec_table.h"
#include "random/philox_simd.h"

namespace lowtide::quant {
namespace {

constexpr int kBlock = 32;
constexpr int kVecs = kBlock / kLanes;

// Bytes of a block's first n codes.
template <int kBits>
LT_SIMD int64_t block_bytes(int64_t n) {
  return kBits == 8 || n < 16 ? n : 16;
}

template <int kBits>
LT_SIMD void load_codes(const uint8_t* p, vi32 q[kVecs]) {
  if constexpr (kBits == 8) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) q[v] = load_bytes(p + v * kLanes);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs / 2; ++v) {
      const vi32 both = load_bytes(p + v * kLanes);
      q[v] = both & 15;
      q[v + kVecs / 2] = both >> 4;
    }
  }
}

// 16 lanes in [0, 255] to 16 bytes.
LT_SIMD void store_16(uint8_t* p, const vi32 q[16 / kLanes]) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)q[0]));
#elif defined(__AVX2__)
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)q[0], (__m256i)q[1]), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                 _mm256_extracti128_si256(words, 1)));
#elif defined(__x86_64__)
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm_packs_epi32((__m128i)q[0], (__m128i)q[1]),
                                                 _mm_packs_epi32((__m128i)q[2], (__m128i)q[3])));
#elif defined(__aarch64__)
  const int16x8_t a = vcombine_s16(vmovn_s32((int32x4_t)q[0]), vmovn_s32((int32x4_t)q[1]));
  const int16x8_t b = vcombine_s16(vmovn_s32((int32x4_t)q[2]), vmovn_s32((int32x4_t)q[3]));
  vst1q_u8(p, vcombine_u8(vmovn_u16((uint16x8_t)a), vmovn_u16((uint16x8_t)b)));
#endif
}

// Adds `zero`, clamps to [lo, 255] and stores 32 bytes; |q| < 2^15 - 256. Narrowing first makes the
// clamp a quarter of the work and the upper end free: packing saturates.
LT_SIMD void store_32_clamped(uint8_t* p, const vi32 q[kVecs], int zero, int lo) {
#if defined(__AVX512F__)
  __m512i w = _mm512_packs_epi32((__m512i)q[0], (__m512i)q[1]);
  w = _mm512_add_epi16(w, _mm512_set1_epi16(static_cast<short>(zero)));
  __m256i b = _mm256_packus_epi16(_mm512_castsi512_si256(w), _mm512_extracti64x4_epi64(w, 1));
  b = _mm256_max_epu8(b, _mm256_set1_epi8(static_cast<char>(lo)));
  // dwords arrive as 0 4 2 6 | 1 5 3 7 (each pack works within 128-bit lanes)
  b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
  _mm256_storeu_si256((__m256i*)p, b);
#elif defined(__AVX2__)
  const __m256i z = _mm256_set1_epi16(static_cast<short>(zero));
  const __m256i a = _mm256_add_epi16(_mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]), z);
  const __m256i c = _mm256_add_epi16(_mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]), z);
  __m256i b = _mm256_packus_epi16(a, c);
  b = _mm256_max_epu8(b, _mm256_set1_epi8(static_cast<char>(lo)));
  b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256((__m256i*)p, b);
#elif defined(__x86_64__)
  const __m128i z = _mm_set1_epi16(static_cast<short>(zero));
  for (int h = 0; h < 2; ++h) {
    const vi32* v = q + 4 * h;
    const __m128i a = _mm_add_epi16(_mm_packs_epi32((__m128i)v[0], (__m128i)v[1]), z);
    const __m128i c = _mm_add_epi16(_mm_packs_epi32((__m128i)v[2], (__m128i)v[3]), z);
    const __m128i b = _mm_packus_epi16(a, c);
    _mm_storeu_si128((__m128i*)(p + 16 * h), _mm_max_epu8(b, _mm_set1_epi8(static_cast<char>(lo))));
  }
#elif defined(__aarch64__)
  const int16x8_t z = vdupq_n_s16(static_cast<int16_t>(zero));
  for (int h = 0; h < 2; ++h) {
    const vi32* v = q + 4 * h;
    const int16x8_t a =
        vaddq_s16(vcombine_s16(vqmovn_s32((int32x4_t)v[0]), vqmovn_s32((int32x4_t)v[1])), z);
    const int16x8_t c =
        vaddq_s16(vcombine_s16(vqmovn_s32((int32x4_t)v[2]), vqmovn_s32((int32x4_t)v[3])), z);
    const uint8x16_t b = vcombine_u8(vqmovun_s16(a), vqmovun_s16(c));
    vst1q_u8(p + 16 * h, vmaxq_u8(b, vdupq_n_u8(static_cast<uint8_t>(lo))));
  }
#endif
}

// Stores clamp(q + zero, lo, 2^bits - 1) for a block of steps q.
template <int kBits>
LT_SIMD void store_codes(uint8_t* p, const vi32 q[kVecs], int zero, int lo) {
  if constexpr (kBits == 8) {
    store_32_clamped(p, q, zero, lo);
  } else {
    vi32 both[kVecs / 2];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs / 2; ++v) {
      const vi32 low = min_i(max_i(q[v] + zero, splat_i(lo)), splat_i(15));
      const vi32 high = min_i(max_i(q[v + kVecs / 2] + zero, splat_i(lo)), splat_i(15));
      both[v] = low | (high << 4);
    }
    store_16(p, both);
  }
}

// The first n < 32 codes of a block; the unused nibble of a last byte is 0.
template <int kBits>
LT_SIMD void load_codes(const uint8_t* p, int64_t n, vi32 q[kVecs]) {
  uint8_t bytes[kBlock] = {};
  __builtin_memcpy(bytes, p, block_bytes<kBits>(n));
  load_codes<kBits>(bytes, q);
}
template <int kBits>
LT_SIMD void store_codes(uint8_t* p, int64_t n, const vi32 q[kVecs], int zero, int lo) {
  uint8_t bytes[kBlock];
  store_codes<kBits>(bytes, q, zero, lo);
  if (kBits == 4)
    for (int64_t j = n < 16 ? 0 : n - 16; j < 16; ++j) bytes[j] &= 15;
  __builtin_memcpy(p, bytes, block_bytes<kBits>(n));
}

// Groups are read twice, from memory and from L1, with arithmetic in between: without help memory
// would rest meanwhile. Hardware prefetchers stop at the end of a page; this looks nearly a page of
// floats ahead. Measured: a quarter of that is too late, four times as much is gone again from L1.
constexpr int kAhead = 896;
template <class In>
LT_SIMD void prefetch_block(const In* p) {
  for (size_t at = 0; at < kBlock * sizeof(In); at += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + at);
}

LT_SIMD vf32 load_float(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 load_float(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
LT_SIMD vf32 load_float(const Half* p) { return half_to_float(load<vu16>(&p->bits)); }
LT_SIMD float load_scalar(const Half* p) { return half_to_float(p->bits); }
LT_SIMD void store_float(Half* p, vf32 x) {
  store(&p->bits, float_to_half(min_f(splat(65504.0f), max_f(splat(-65504.0f), x))));
}
LT_SIMD float load_scalar(const float* p) { return *p; }
LT_SIMD float load_scalar(const uint16_t* p) { return bf16_to_float(*p); }
LT_SIMD void store_float(float* p, vf32 x) { store(p, x); }
LT_SIMD void store_float(uint16_t* p, vf32 x) { store(p, float_to_bf16(x)); }

// Lane i of the result is lane i ^ d.
template <class V>
LT_SIMD V swap_lanes(V x, int d) {
  return __builtin_shuffle(x, as_i(iota()) ^ d);
}
LT_SIMD int32_t reduce_max(vi32 x) {
#pragma GCC unroll 4
  for (int d = kLanes / 2; d > 0; d /= 2) x = max_i(x, swap_lanes(x, d));
  return x[0];
}
LT_SIMD float reduce_max(vf32 x) {
#pragma GCC unroll 4
  for (int d = kLanes / 2; d > 0; d /= 2) x = max_f(x, swap_lanes(x, d));
  return x[0];
}
LT_SIMD float reduce_min(vf32 x) {
#pragma GCC unroll 4
  for (int d = kLanes / 2; d > 0; d /= 2) x = min_f(x, swap_lanes(x, d));
  return x[0];
}

// The 16-bit halves of a tile's words in the order of random::sr16: 64 low ones, 64 high ones.
LT_SIMD void tile_halves(uint64_t tile, const random::KeySchedule& key, uint32_t param,
                         uint32_t role, uint16_t* out) {
#if defined(__AVX512F__)
  typedef uint16_t v32 __attribute__((vector_size(64)));
  vu32 x[4];
  random::tile_words(tile, 0, key, param, role, x);
  v32 low, high;
  for (int i = 0; i < 32; ++i) low[i] = static_cast<uint16_t>(2 * i), high[i] = low[i] + 1;
  for (int h = 0; h < 2; ++h) {
    const v32 a = (v32)x[2 * h], b = (v32)x[2 * h + 1];
    const v32 lows = __builtin_shuffle(a, b, low), highs = __builtin_shuffle(a, b, high);
    __builtin_memcpy(out + 32 * h, &lows, 64);
    __builtin_memcpy(out + 64 + 32 * h, &highs, 64);
  }
#else
  for (uint32_t lane = 0; lane < 16; lane += kLanes) {
    vu32 x[4];
    random::tile_words(tile, lane, key, param, role, x);
    for (int w = 0; w < 4; ++w) {
      store(out + 16 * w + lane, __builtin_convertvector(x[w], vu16));
      store(out + 64 + 16 * w + lane, __builtin_convertvector(x[w] >> 16, vu16));
    }
  }
#endif
}

LT_SIMD vi32 load_noise(const uint16_t* p) {
  return as_i(__builtin_convertvector(load<vu16>(p), vu32));
}

// random::sr16 for consecutive elements. Tiles of 128 elements are generated once: a worker walks
// elements in order, so the tile that two groups share is kept. Where blocks of 32 elements lie
// within half a tile (rows of a multiple of 32 columns), noise is read from the words as they are
// generated; elsewhere the words are first split into their halves.
class Noise {
 public:
  static constexpr int64_t kSpan = 512;  // elements that one cover() can hold

  Noise(random::Key key, uint32_t param, uint32_t role) : key_(key), param_(param), role_(role) {}

  // Generates what is missing of elements [e, e + n), 0 < n <= kSpan.
  void cover(uint64_t e, int64_t n) {
    const bool split = e % kBlock != 0;
    const uint64_t first = e / 128;
    const uint64_t last = (e + static_cast<uint64_t>(n) - 1) / 128;
    uint64_t t = first;
    if (split == split_ && first >= first_ && first < first_ + held_) {
      t = first_ + held_;
      if (first != first_)
        __builtin_memmove(words_, words_ + (first - first_) * 64, (t - first) * 64 * 4);
    }
    for (; t <= last; ++t) {
      uint32_t* words = words_ + (t - first) * 64;
      if (split)
        tile_halves(t, key_, param_, role_, reinterpret_cast<uint16_t*>(words));
      else
        random::tile_words(t, key_, param_, role_, words);
    }
    first_ = first;
    held_ = t - first;
    split_ = split;
    at_ = static_cast<int64_t>(e % 128);
  }

  // Of the block from element e + i on, i a multiple of 32 below n; lanes past the end hold
  // anything.
  inline __attribute__((always_inline)) void block(int64_t i, vi32 r[kVecs]) const {
    const int64_t at = at_ + i;
    if (split_) {
      const uint16_t* p = reinterpret_cast<const uint16_t*>(words_) + at;
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) r[v] = load_noise(p + v * kLanes);
      return;
    }
    const uint32_t* p = words_ + at / 128 * 64 + at % 64;
    if (at % 128 < 64) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) r[v] = as_i(load<vu32>(p + v * kLanes) & 0xffffu);
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) r[v] = as_i(load<vu32>(p + v * kLanes) >> 16);
    }
  }

 private:
  random::KeySchedule key_;
  uint32_t param_, role_;
  uint64_t first_ = 0, held_ = 0;
  int64_t at_ = 0;
  bool split_ = false;
  // A span that starts within a tile ends within another; 16 for lanes past the end.
  alignas(64) uint32_t words_[(kSpan + 128) / 2 + 16] = {};
};

// The group after this one; cheaper than the division of group_span.
LT_SIMD void next_group(GroupSpan& at, const GroupShape& s) {
  at.col += s.group;
  if (at.col >= s.cols) at.col = 0, ++at.row;
  at.n = s.cols - at.col < s.group ? s.cols - at.col : s.group;
}

}  // namespace
}  // namespace lowtide::quant
