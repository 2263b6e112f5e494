// SPDX-License-Identifier: Apache-2.0
// Blocks of 32 codes in vectors, and the noise of stochastic rounding. For *_simd.cc files only.
// Group starts are multiples of 32 columns, so a block is whole bytes in either width.
#pragma once
#include "quant/group_format.h"
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
    for (int v = 0; v < kVecs; ++v) q[v] = __builtin_convertvector(load<vu8>(p + v * kLanes), vi32);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs / 2; ++v) {
      const vi32 both = __builtin_convertvector(load<vu8>(p + v * kLanes), vi32);
      q[v] = both & 15;
      q[v + kVecs / 2] = both >> 4;
    }
  }
}

template <int kBits>
LT_SIMD void store_codes(uint8_t* p, const vi32 q[kVecs]) {
  if constexpr (kBits == 8) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(p + v * kLanes, __builtin_convertvector(q[v], vu8));
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs / 2; ++v)
      store(p + v * kLanes, __builtin_convertvector(q[v] | (q[v + kVecs / 2] << 4), vu8));
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
LT_SIMD void store_codes(uint8_t* p, int64_t n, vi32 q[kVecs]) {
  uint8_t bytes[kBlock];
  for (int v = 0; v < kVecs; ++v)
    q[v] &= as_i(iota()) + v * kLanes < splat_i(static_cast<int32_t>(n));
  store_codes<kBits>(bytes, q);
  __builtin_memcpy(p, bytes, block_bytes<kBits>(n));
}

LT_SIMD vf32 load_float(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 load_float(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
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

LT_SIMD vi32 clamp_i(vi32 x, int lo, int hi) { return min_i(max_i(x, splat_i(lo)), splat_i(hi)); }

// random::sr16 for consecutive elements. Tiles of 128 elements are generated once: a worker walks
// elements in order, so the tile that two groups share is kept.
class Noise {
 public:
  static constexpr int64_t kSpan = 512;  // elements that one cover() can hold

  Noise(random::Key key, uint32_t param, uint32_t role) : key_(key), param_(param), role_(role) {}

  // Makes elements [e, e + n) available, n <= kSpan.
  void cover(uint64_t e, int64_t n) {
    const uint64_t first = e / 128;
    const uint64_t last = (e + static_cast<uint64_t>(n) - 1) / 128;
    uint64_t t = first;
    if (held_ > 0 && first >= first_ && first < first_ + held_) {
      const uint64_t keep = first_ + held_ - first;
      if (first != first_)
        __builtin_memmove(words_, words_ + (first - first_) * 64, keep * 64 * sizeof(uint32_t));
      t += keep;
    }
    first_ = first;
    for (; t <= last; ++t) random::tile_words(t, key_, param_, role_, words_ + (t - first) * 64);
    held_ = t - first;
  }

  // The noise of elements [e, e + kLanes).
  inline __attribute__((always_inline)) vi32 at(uint64_t e) const {
    if (e % kLanes == 0) {
      const vu32 w = load<vu32>(words_ + (e / 128 - first_) * 64 + e % 64);
      return as_i((e & 64) != 0 ? w >> 16 : w & 0xffffu);
    }
    vi32 r;
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t at = e + static_cast<uint64_t>(i);
      const uint32_t w = words_[(at / 128 - first_) * 64 + at % 64];
      r[i] = static_cast<int32_t>((at & 64) != 0 ? w >> 16 : w & 0xffffu);
    }
    return r;
  }

 private:
  random::Key key_;
  uint32_t param_, role_;
  uint64_t first_ = 0, held_ = 0;
  // One tile more than a span for each misaligned end, and one for lanes past the end.
  uint32_t words_[(kSpan / 128 + 2) * 64] = {};
};

}  // namespace
}  // namespace lowtide::quant
