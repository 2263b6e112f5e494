// SPDX-License-Identifier: Apache-2.0
// acc = fma(c, z, acc) over a range of a direction. For *_simd.cc files only.
#pragma once
#include "random/distributions_simd.h"

namespace lowtide::spsa {
namespace {

// Ranges begin and end at multiples of this.
template <class D>
constexpr int64_t kRangeGrain = D::kTile < 256 ? 64 : 256;
template <>
constexpr int64_t kRangeGrain<random::Rademacher> = 64;

// acc[i] = fma(c, z[first + i], kFresh ? 0 : acc[i]), 0 <= i < n.
template <class D, bool kFresh>
LT_SIMD void accumulate(float* acc, uint64_t first, int64_t n, random::Key key, uint32_t param,
                        float c) {
  const random::KeySchedule keys(key);
  for (int64_t i = 0; i < n; i += D::kTile) {
    float* to = acc + i;
    D::tile((first + static_cast<uint64_t>(i)) / D::kTile, keys, param,
            random::kRoleZ, [&](uint32_t at, vf32 z) __attribute__((always_inline)) {
              store(to + at, fma_rn(splat(c), z, kFresh ? vf32{} : load<vf32>(to + at)));
            });
  }
}

// kLanes bits of a word from bit b on, as signs.
class Signs {
 public:
#if defined(__AVX512F__)  // one test; gcc makes two instructions of `(x & y) != 0`
  inline __attribute__((always_inline)) Signs(uint32_t word, uint32_t b)
      : negative_(_mm512_test_epi32_mask((__m512i)splat_u(word),
                                         (__m512i)(splat_u(1u) << (iota() + b)))) {}
  inline __attribute__((always_inline)) vf32 select(vf32 plus, vf32 minus) const {
    return (vf32)_mm512_mask_blend_ps(negative_, (__m512)plus, (__m512)minus);
  }

 private:
  __mmask16 negative_;
#else
  inline __attribute__((always_inline)) Signs(uint32_t word, uint32_t b)
      : negative_((splat_u(word) & (splat_u(1u) << (iota() + b))) != 0u) {}
  inline __attribute__((always_inline)) vf32 select(vf32 plus, vf32 minus) const {
    return negative_ ? minus : plus;
  }

 private:
  vi32 negative_;
#endif
};

// The bits of word b are the signs of 32 neighbours: f(position, select) for each vector, where
// select(plus, minus) picks by sign.
template <class F>
LT_SIMD void for_signs(uint64_t first, int64_t n, const random::KeySchedule& keys, uint32_t param,
                       const F& f) {
  constexpr int64_t kTile = random::Rademacher::kTile;
  for (int64_t i = 0; i < n;) {
    const uint64_t e = first + static_cast<uint64_t>(i);
    const auto head = static_cast<int64_t>(e % kTile);
    const int64_t here = n - i < kTile - head ? n - i : kTile - head;
    uint32_t word[random::kTileWords];
    random::tile_words(e / kTile, keys, param, random::kRoleZ, word);
    const uint32_t* from = word + head / 32;
    for (int64_t w = 0; w < here / 32; ++w) {
#pragma GCC unroll 8
      for (uint32_t b = 0; b < 32; b += kLanes) {
        const Signs signs(from[w], b);
        f(
            i + 32 * w + b, [&](vf32 plus, vf32 minus) __attribute__((always_inline)) {
              return signs.select(plus, minus);
            });
      }
    }
    i += here;
  }
}

// c * (+-1) is exact, so one rounding of the sum is all that fma does.
template <bool kFresh>
LT_SIMD void accumulate_signs(float* acc, uint64_t first, int64_t n, random::Key key,
                              uint32_t param, float c) {
  const random::KeySchedule keys(key);
  const vf32 plus = kFresh ? vf32{} + splat(c) : splat(c);
  const vf32 minus = kFresh ? vf32{} + splat(-c) : splat(-c);
  for_signs(
      first, n, keys, param, [&](int64_t i, const auto& select) __attribute__((always_inline)) {
        const vf32 x = select(plus, minus);
        store(acc + i, kFresh ? x : load<vf32>(acc + i) + x);
      });
}

template <class D>
LT_SIMD void add_direction(float* acc, uint64_t first, int64_t n, random::Key key, uint32_t param,
                           float c, bool fresh) {
  if constexpr (D::kTile == random::Rademacher::kTile) {
    if (fresh)
      accumulate_signs<true>(acc, first, n, key, param, c);
    else
      accumulate_signs<false>(acc, first, n, key, param, c);
  } else {
    if (fresh)
      accumulate<D, true>(acc, first, n, key, param, c);
    else
      accumulate<D, false>(acc, first, n, key, param, c);
  }
}

}  // namespace
}  // namespace lowtide::spsa
