// SPDX-License-Identifier: Apache-2.0
// The same sum as digest_ref.cc. Memory is read as 64-bit words and each word's elements are taken
// out by shifts: the sum has no order, so nothing is permuted. Limits: two 64-bit multiplies an
// element, three instructions each on AVX-512 and nine elsewhere.
#include "base/simd.h"
#include "spsa/digest_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::spsa {
namespace {

constexpr int kWide = kLanes / 2;
typedef uint64_t vq64 __attribute__((vector_size(8 * kWide)));

LT_SIMD vq64 splat_q(uint64_t x) { return x - vq64{}; }

LT_SIMD vq64 mix64(vq64 x) {
  x ^= x >> 30;
  x *= splat_q(0xBF58476D1CE4E5B9ull);
  x ^= x >> 27;
  x *= splat_q(0x94D049BB133111EBull);
  return x ^ (x >> 31);
}

template <int kWidth>
LT_SIMD uint64_t element(const uint8_t* p) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, p, kWidth);  // little endian
  return bits;
}

template <int kWidth>
uint64_t sum_simd(const uint8_t* p, int64_t n, uint64_t first) {
  constexpr int kEach = 8 / kWidth;  // elements in a word
  constexpr int kStep = kEach * kWide;
  constexpr uint64_t kMask = ~0ull >> (64 - 8 * kWidth);
  vq64 at;  // index * stride of each word's first element
  for (int j = 0; j < kWide; ++j)
    at[j] = (first + static_cast<uint64_t>(j * kEach)) * kDigestStride;
  vq64 sum[2] = {};
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    vq64 word;
    __builtin_memcpy(&word, p + i * kWidth, sizeof word);
#pragma GCC unroll 8
    for (int k = 0; k < kEach; ++k) {
      const vq64 bits = (word >> (8 * kWidth * k)) & splat_q(kMask);
      sum[k % 2] += mix64(bits + (at + splat_q(static_cast<uint64_t>(k) * kDigestStride)));
    }
    at += splat_q(kStep * kDigestStride);
  }
  uint64_t total = 0;
  for (int j = 0; j < kWide; ++j) total += sum[0][j] + sum[1][j];
  for (; i < n; ++i)
    total += digest_term(element<kWidth>(p + i * kWidth), first + static_cast<uint64_t>(i));
  return total;
}

uint64_t sum_any(const void* w, int width, int64_t n, uint64_t first) {
  const auto* p = static_cast<const uint8_t*>(w);
  return width == 4   ? sum_simd<4>(p, n, first)
         : width == 2 ? sum_simd<2>(p, n, first)
                      : sum_simd<1>(p, n, first);
}

}  // namespace

extern const DigestTable LT_CAT(digest_, LT_ISA);
const DigestTable LT_CAT(digest_, LT_ISA) = {sum_any};

}  // namespace lowtide::spsa
