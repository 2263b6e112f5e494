// SPDX-License-Identifier: Apache-2.0
// The distributions of distributions.h a tile at a time. For *_simd.cc files only, of any family.
//
// A distribution D has D::kTile, the elements that one tile of words gives (they start at multiples
// of it in the global index), and D::tile(), which hands them out kLanes at a time. walk() covers a
// range that begins and ends anywhere.
#pragma once
#include "random/distributions.h"
#include "random/philox_simd.h"

namespace lowtide::random {
namespace {

// distributions.h: gaussian_pair, on vectors.
LT_SIMD void gaussian_pair(vu32 a, vu32 b, vf32& z0, vf32& z1) {
  const vf32 u = to_float(as_i((a >> 8) + 1u));
  const vu32 ix = as_u(u) - 0x3f3504f3u;
  const vf32 e = to_float((as_i(ix) >> 23) - 24);
  const vf32 f = as_f((ix & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  vf32 p = splat(0x1.79ec44p-4f);
  p = fma_rn(p, f, splat(-0x1.25ef5ep-3f));
  p = fma_rn(p, f, splat(0x1.2e979cp-3f));
  p = fma_rn(p, f, splat(-0x1.5330b2p-3f));
  p = fma_rn(p, f, splat(0x1.9913b2p-3f));
  p = fma_rn(p, f, splat(-0x1.000566p-2f));
  p = fma_rn(p, f, splat(0x1.555624p-2f));
  p = fma_rn(p, f, splat(-0x1.fffffcp-2f));
  vf32 ln = fma_rn(f * f, p, f);
  ln = fma_rn(e, splat(0x1.62e430p-1f), ln);
  vf32 r = sqrt_rn(ln * -2.0f);
  const vf32 t = to_float(as_i((b >> 6) & 0xffffffu) - 0x800000) * 0x1p-24f;
  const vf32 q = t * t;
  vf32 s = splat(-0x1.2d9bc6p-8f);
  s = fma_rn(s, q, splat(0x1.465ec6p-4f));
  s = fma_rn(s, q, splat(-0x1.4abbbap-1f));
  s = fma_rn(s, q, splat(0x1.921fb6p+0f));
  s = s * t;
  vf32 c = splat(0x1.d9c372p-11f);
  c = fma_rn(c, q, splat(-0x1.55c57cp-6f));
  c = fma_rn(c, q, splat(0x1.03c1dcp-2f));
  c = fma_rn(c, q, splat(-0x1.3bd3ccp+0f));
  c = fma_rn(c, q, splat(1.0f));
  const vi32 swap = as_i(b << 1) < 0;
  r = as_f(as_u(r) ^ (b & 0x80000000u));
  z0 = r * (swap ? s : c);
  z1 = r * (swap ? c : s);
}

struct Gaussian {
  static constexpr int64_t kTile = 64;  // elements of one tile of words
  // emit(i, z): i is the element's position in the tile, z kLanes consecutive elements.
  template <class Emit>
  static inline __attribute__((always_inline)) void tile(uint64_t t, const KeySchedule& key,
                                                         uint32_t param, uint32_t role,
                                                         const Emit& emit) {
#pragma GCC unroll 4
    for (uint32_t lane = 0; lane < 16; lane += kLanes) {
      vu32 x[4];
      tile_words(t, lane, key, param, role, x);
      vf32 z[4];
      gaussian_pair(x[0], x[1], z[0], z[1]);
      gaussian_pair(x[2], x[3], z[2], z[3]);
      for (uint32_t w = 0; w < 4; ++w) emit(16 * w + lane, z[w]);
    }
  }
};

struct Rademacher {
  static constexpr int64_t kTile = 2048;
  template <class Emit>
  static inline __attribute__((always_inline)) void tile(uint64_t t, const KeySchedule& key,
                                                         uint32_t param, uint32_t role,
                                                         const Emit& emit) {
    uint32_t word[kTileWords];
    tile_words(t, key, param, role, word);
    const vu32 ones = as_u(splat(1.0f));
    for (uint32_t w = 0; w < kTileWords; ++w) {
#pragma GCC unroll 8
      for (uint32_t b = 0; b < 32; b += kLanes) {
        const vu32 bit = splat_u(word[w]) >> (iota() + b);
        emit(32 * w + b, as_f(ones | (bit << 31)));
      }
    }
  }
};

struct Ih4 {
  static constexpr int64_t kTile = 64;
  template <class Emit>
  static inline __attribute__((always_inline)) void tile(uint64_t t, const KeySchedule& key,
                                                         uint32_t param, uint32_t role,
                                                         const Emit& emit) {
#pragma GCC unroll 4
    for (uint32_t lane = 0; lane < 16; lane += kLanes) {
      vu32 x[4];
      tile_words(t, lane, key, param, role, x);
      for (uint32_t w = 0; w < 4; ++w) {
        const vu32 pairs = (x[w] & 0x00ff00ffu) + ((x[w] >> 8) & 0x00ff00ffu);
        const vu32 sum = (pairs + (pairs >> 16)) & 0xffffu;
        emit(16 * w + lane, to_float(as_i(sum) - 510) * 0x1.bb688cp-8f);
      }
    }
  }
};

// The magnitudes of lut8 at indices 0 <= i < 128.
class Lut8Magnitudes {
 public:
#if defined(__AVX512F__)
  inline __attribute__((always_inline)) Lut8Magnitudes()
      : low_(_mm512_loadu_si512(kLut8.word)), high_(_mm512_loadu_si512(kLut8.word + 16)) {}
  inline __attribute__((always_inline)) vi32 at(vu32 i) const {
    const vu32 word = (vu32)_mm512_permutex2var_epi32(low_, (__m512i)(i >> 2), high_);
    return as_i((word >> ((i & 3u) << 3)) & 255u);
  }

 private:
  __m512i low_, high_;
#elif defined(__AVX2__)
  inline __attribute__((always_inline)) Lut8Magnitudes() {
    for (int k = 0; k < 4; ++k) part_[k] = _mm256_loadu_si256((const __m256i*)(kLut8.word + 8 * k));
  }
  inline __attribute__((always_inline)) vi32 at(vu32 i) const {
    const __m256i w = (__m256i)(i >> 2);
    __m256 p[4];
    for (int k = 0; k < 4; ++k)
      p[k] = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(part_[k], w));
    const __m256 bit3 = _mm256_castsi256_ps((__m256i)(i << 26));
    const __m256 bit4 = _mm256_castsi256_ps((__m256i)(i << 25));
    const __m256 word = _mm256_blendv_ps(_mm256_blendv_ps(p[0], p[1], bit3),
                                         _mm256_blendv_ps(p[2], p[3], bit3), bit4);
    return as_i(((vu32)word >> ((i & 3u) << 3)) & 255u);
  }

 private:
  __m256i part_[4];
#else
  inline __attribute__((always_inline)) vi32 at(vu32 i) const {
    const auto* bytes = reinterpret_cast<const uint8_t*>(kLut8.word);  // little-endian targets
    return vi32{bytes[i[0]], bytes[i[1]], bytes[i[2]], bytes[i[3]]};
  }
#endif
};

struct Lut8 {
  static constexpr int64_t kTile = 256;
  template <class Emit>
  static inline __attribute__((always_inline)) void tile(uint64_t t, const KeySchedule& key,
                                                         uint32_t param, uint32_t role,
                                                         const Emit& emit) {
    uint32_t word[kTileWords];
    tile_words(t, key, param, role, word);
    const Lut8Magnitudes magnitudes;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < kTile; i += kLanes) {
      const vi32 b = load_bytes(reinterpret_cast<const uint8_t*>(word) + i);
      const vi32 sign = (b >> 7) - 1;  // -1 below 128: the mirrored byte, the negative level
      const vi32 magnitude = magnitudes.at((vu32)(b ^ sign) & 127u);
      emit(i, to_float((magnitude ^ sign) - sign) * kLut8Scale);
    }
  }
};

// f(D{}) with the distribution that `dist` names.
template <class F>
LT_SIMD auto with_dist(Dist dist, const F& f) {
  switch (dist) {
    case Dist::gaussian:
      return f(Gaussian{});
    case Dist::ih4:
      return f(Ih4{});
    case Dist::lut8:
      return f(Lut8{});
    default:
      return f(Rademacher{});
  }
}

// Walks [offset, offset + n): whole tiles through `full(i, z)`, cut tiles through a buffer and
// `part(i, z)`; i counts from the start of the range.
template <class D, class Full, class Part>
LT_SIMD void walk(int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role,
                  const Full& full, const Part& part) {
  const KeySchedule keys(key);
  int64_t i = 0;
  while (i < n) {
    const uint64_t e = static_cast<uint64_t>(offset + i);
    const uint64_t tile = e / D::kTile;
    const int64_t head = static_cast<int64_t>(e % D::kTile);
    if (head == 0 && n - i >= D::kTile) {
      D::tile(tile, keys, param, role, [&](uint32_t at, vf32 z) { full(i + at, z); });
      i += D::kTile;
      continue;
    }
    float z[D::kTile];
    D::tile(tile, keys, param, role, [&](uint32_t at, vf32 v) { store(z + at, v); });
    const int64_t stop = n - i < D::kTile - head ? n - i : D::kTile - head;
    for (int64_t j = 0; j < stop; ++j) part(i + j, z[head + j]);
    i += stop;
  }
}

}  // namespace
}  // namespace lowtide::random
