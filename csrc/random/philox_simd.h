// SPDX-License-Identifier: Apache-2.0
// Philox4x32 on kLanes blocks at once. For *_simd.cc files only.
//
// Words live in the low halves of 64-bit lanes, in two vectors: a 32x32 multiply leaves its low
// word where the next one reads it and its high word one shift away. A round is two multiplies, two
// shifts and the exclusive ors; upper halves hold garbage that nothing reads. The first rounds work
// half on words that many tiles share, which is scalar arithmetic.
#pragma once
#include "base/simd.h"
#include "random/philox.h"

namespace lowtide::random {
namespace {

typedef uint64_t vq64 __attribute__((vector_size(4 * LT_LANES)));  // kLanes / 2 lanes

// a and b hold lanes {0, 1, 4, 5, ...} and {2, 3, 6, 7, ...}: interleave() then needs one shuffle.
struct Word {
  vq64 a, b;
};

// Round keys, in memory: broadcasting them from there is free, from registers it is a shuffle each.
struct KeySchedule {
  uint64_t k0[kRounds], k1[kRounds];

  inline __attribute__((always_inline)) KeySchedule(Key key) {
    for (int r = 0; r < kRounds; ++r) {
      k0[r] = key.k0 + static_cast<uint32_t>(r) * 0x9E3779B9u;
      k1[r] = key.k1 + static_cast<uint32_t>(r) * 0xBB67AE85u;
    }
  }
};

LT_SIMD vq64 splat_low(uint64_t x) { return x - vq64{}; }

LT_SIMD vq64 mul_low(vq64 x, uint32_t m) {
#if defined(__AVX512F__)
  return (vq64)_mm512_mul_epu32((__m512i)x, (__m512i)splat_low(m));
#elif defined(__AVX2__)
  return (vq64)_mm256_mul_epu32((__m256i)x, (__m256i)splat_low(m));
#elif defined(__x86_64__)
  return (vq64)_mm_mul_epu32((__m128i)x, (__m128i)splat_low(m));
#elif defined(__aarch64__)
  return (vq64)vmull_n_u32(vmovn_u64((uint64x2_t)x), m);
#endif
}

LT_SIMD Word mul_low(Word x, uint32_t m) { return {mul_low(x.a, m), mul_low(x.b, m)}; }

// A shuffle where shifts would share their port with the multiplies.
LT_SIMD vq64 high(vq64 product) {
#if defined(__AVX512F__)
  return (vq64)_mm512_movehdup_ps((__m512)product);
#else
  return product >> 32;
#endif
}

// hi(product) ^ y ^ k
LT_SIMD Word mix(Word product, Word y, uint64_t k) {
  return {high(product.a) ^ y.a ^ splat_low(k), high(product.b) ^ y.b ^ splat_low(k)};
}
LT_SIMD Word mix(Word product, uint64_t k) {
  return {high(product.a) ^ splat_low(k), high(product.b) ^ splat_low(k)};
}

LT_SIMD vu32 interleave(Word x) {
#if defined(__AVX512F__)
  return (vu32)_mm512_shuffle_ps((__m512)x.a, (__m512)x.b, 0x88);
#elif defined(__AVX2__)
  return (vu32)_mm256_shuffle_ps((__m256)x.a, (__m256)x.b, 0x88);
#elif defined(__x86_64__)
  return (vu32)_mm_shuffle_ps((__m128)x.a, (__m128)x.b, 0x88);
#elif defined(__aarch64__)
  return (vu32)vuzp1q_u32((uint32x4_t)x.a, (uint32x4_t)x.b);
#endif
}

// interleave(high(a), high(b)) in one shuffle.
LT_SIMD vu32 interleave_high(Word x) {
#if defined(__AVX512F__)
  return (vu32)_mm512_shuffle_ps((__m512)x.a, (__m512)x.b, 0xdd);
#elif defined(__AVX2__)
  return (vu32)_mm256_shuffle_ps((__m256)x.a, (__m256)x.b, 0xdd);
#elif defined(__x86_64__)
  return (vu32)_mm_shuffle_ps((__m128)x.a, (__m128)x.b, 0xdd);
#elif defined(__aarch64__)
  return (vu32)vuzp2q_u32((uint32x4_t)x.a, (uint32x4_t)x.b);
#endif
}

// What the blocks of 2^28 tiles share: their words 1 to 3 in the first two rounds, and what those
// are joined with. In memory, as the round keys.
struct SharedWords {
  uint64_t high;  // of the block number
  uint64_t k1, k2, s2, k3;

  inline __attribute__((always_inline))
  SharedWords(uint64_t tile, const KeySchedule& key, uint32_t param, uint32_t role)
      : high(tile >> 28) {
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * param;
    const uint32_t s0 = static_cast<uint32_t>(p1 >> 32) ^ static_cast<uint32_t>(high) ^
                        static_cast<uint32_t>(key.k0[0]);
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * s0;
    k1 = role ^ key.k1[0];
    k2 = static_cast<uint32_t>(p1) ^ key.k0[1];
    s2 = static_cast<uint32_t>(p0 >> 32) ^ static_cast<uint32_t>(key.k1[1]);
    k3 = static_cast<uint32_t>(p0) ^ key.k1[2];
  }
};

template <int kCount>
LT_SIMD void tile_words_of(uint64_t tile, uint32_t lane, const KeySchedule& key,
                           const SharedWords& s, vu32 x[4]) {
  constexpr uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  const uint64_t block = tile * 16 + lane;  // the 16 blocks of a tile share their high word
  vq64 first;
  for (int j = 0; j < kLanes / 2; ++j) first[j] = static_cast<uint64_t>(j / 2 * 4 + j % 2);
  const Word counter = {first + block, first + (block + 2)};

  // Word 0 differs between blocks; words 1 to 3 do not.
  Word x3 = mul_low(counter, kM0);
  Word x2 = mix(x3, s.k1);

  // Words 2 and 3 do.
  Word x1 = mul_low(x2, kM1);
  Word x0 = mix(x1, s.k2);
  x2 = {x3.a ^ splat_low(s.s2), x3.b ^ splat_low(s.s2)};

  // Words 3 do.
  Word q0 = mul_low(x0, kM0), q1 = mul_low(x2, kM1);
  x0 = mix(q1, x1, key.k0[2]);
  x2 = mix(q0, s.k3);
  x1 = q1, x3 = q0;

#pragma GCC unroll 8
  for (int r = 3; r < kCount - 1; ++r) {
    q0 = mul_low(x0, kM0), q1 = mul_low(x2, kM1);
    x0 = mix(q1, x1, key.k0[r]);
    x2 = mix(q0, x3, key.k1[r]);
    x1 = q1, x3 = q0;
  }
  // The last round, on whole words.
  q0 = mul_low(x0, kM0), q1 = mul_low(x2, kM1);
  x[0] = interleave_high(q1) ^ interleave(x1) ^ static_cast<uint32_t>(key.k0[kCount - 1]);
  x[2] = interleave_high(q0) ^ interleave(x3) ^ static_cast<uint32_t>(key.k1[kCount - 1]);
  x[1] = interleave(q1), x[3] = interleave(q0);
}

// Words of tile T, lanes [lane, lane + kLanes): x[w] is the part of row w.
LT_SIMD void tile_words(uint64_t tile, uint32_t lane, const KeySchedule& key, uint32_t param,
                        uint32_t role, vu32 x[4]) {
  const SharedWords shared(tile, key, param, role);
  if (is_rounding(role))
    tile_words_of<kRoundsSr>(tile, lane, key, shared, x);
  else
    tile_words_of<kRounds>(tile, lane, key, shared, x);
}

// All 64 words of a tile.
LT_SIMD void tile_words(uint64_t tile, const KeySchedule& key, uint32_t param, uint32_t role,
                        uint32_t* out) {
  for (uint32_t lane = 0; lane < 16; lane += kLanes) {
    vu32 x[4];
    tile_words(tile, lane, key, param, role, x);
    for (int w = 0; w < 4; ++w) store(out + 16 * w + lane, x[w]);
  }
}

}  // namespace
}  // namespace lowtide::random
