// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 on kLanes blocks at once. For *_simd.cc files only.
//
// Words live in the low halves of 64-bit lanes, in two vectors: a 32x32 multiply leaves its low
// word where the next one reads it and its high word one shift away. A round is two multiplies, two
// shifts and the exclusive ors; upper halves hold garbage that nothing reads. The first two rounds
// work half on words that all blocks share, which is scalar arithmetic.
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
  uint64_t k0[10], k1[10];

  inline __attribute__((always_inline)) KeySchedule(Key key) {
    for (int r = 0; r < 10; ++r) {
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

// Words of tile T, lanes [lane, lane + kLanes): x[w] is the part of row w.
LT_SIMD void tile_words(uint64_t tile, uint32_t lane, const KeySchedule& key, uint32_t param,
                        uint32_t role, vu32 x[4]) {
  constexpr uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  const uint64_t block = tile * 16 + lane;  // the 16 blocks of a tile share their high word
  vq64 first;
  for (int j = 0; j < kLanes / 2; ++j) first[j] = static_cast<uint64_t>(j / 2 * 4 + j % 2);
  const Word counter = {first + block, first + (block + 2)};

  // Round 1: word 0 differs between blocks; words 1 to 3 do not.
  const uint64_t p1 = static_cast<uint64_t>(kM1) * param;
  const uint32_t s0 = static_cast<uint32_t>(p1 >> 32) ^ static_cast<uint32_t>(block >> 32) ^
                      static_cast<uint32_t>(key.k0[0]);
  const uint32_t s1 = static_cast<uint32_t>(p1);
  Word x3 = mul_low(counter, kM0);
  Word x2 = mix(x3, role ^ key.k1[0]);

  // Round 2: words 2 and 3 do.
  const uint64_t p0 = static_cast<uint64_t>(kM0) * s0;
  Word x1 = mul_low(x2, kM1);
  Word x0 = mix(x1, s1 ^ key.k0[1]);
  const uint32_t s2 = static_cast<uint32_t>(p0 >> 32) ^ static_cast<uint32_t>(key.k1[1]);
  x2 = {x3.a ^ splat_low(s2), x3.b ^ splat_low(s2)};
  const uint32_t s3 = static_cast<uint32_t>(p0);
  x3 = {splat_low(s3), splat_low(s3)};

#pragma GCC unroll 8
  for (int r = 2; r < 10; ++r) {
    const Word q0 = mul_low(x0, kM0), q1 = mul_low(x2, kM1);
    x0 = mix(q1, x1, key.k0[r]);
    x2 = mix(q0, x3, key.k1[r]);
    x1 = q1;
    x3 = q0;
  }
  x[0] = interleave(x0), x[1] = interleave(x1), x[2] = interleave(x2), x[3] = interleave(x3);
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
