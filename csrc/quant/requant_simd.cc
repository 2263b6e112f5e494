// SPDX-License-Identifier: Apache-2.0
// The same bits as requant_ref.cc, in blocks of 32 elements. Compiled once per ISA with LT_ISA
// naming the table.
//
// Limits (AVX-512): instructions on the two 512-bit ports for 32 elements are 24 to decode, update,
// find the extremes and round, 8 to add the noise and pack, 20 for Philox: 26 cycles, and 35 are
// measured in L2 (0.28 ns an element). Six bytes from memory (INT4: five) want 0.39 ns (0.32), and
// hide most of it.
#include "quant/group_simd.h"
#include "quant/group_tile_simd.h"
#include "quant/requant_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

// One block of codes and its deltas; short blocks are padded with codes of value 0 and no delta,
// which change neither extremes nor anything else.
template <int kBits>
LT_SIMD void load_block(const uint8_t* codes, const float* delta, int64_t n, int zero,
                        vi32 k[kVecs], vf32 d[kVecs]) {
  if (n >= kBlock) {
    load_codes<kBits>(codes, k);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) d[v] = load<vf32>(delta + v * kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) k[v] -= zero;
    return;
  }
  float part[kBlock] = {};
  __builtin_memcpy(part, delta, static_cast<size_t>(n) * sizeof(float));
  load_codes<kBits>(codes, n, k);
  for (int v = 0; v < kVecs; ++v) {
    d[v] = load<vf32>(part + v * kLanes);
    k[v] = (k[v] - zero) & (as_i(iota()) + v * kLanes < splat_i(static_cast<int32_t>(n)));
  }
}

template <int kBits>
LT_SIMD void store_block(uint8_t* codes, int64_t n, const vi32 q[kVecs], int zero, int lo) {
  if (n >= kBlock)
    store_codes<kBits>(codes, q, zero, lo);
  else
    store_codes<kBits>(codes, n, q, zero, lo);
}

// scale: of the old codes, times the decay.
LT_SIMD vf32 value(vf32 k, vf32 moved, float scale) { return k * splat(scale) + moved; }

// Rare: the sum of a group's new values is not finite. Is every one of them?
template <int kBits>
__attribute__((noinline)) bool all_finite(const uint8_t* codes, const float* delta, int64_t n,
                                          int zero, float scale, const RequantScalars& r) {
  vf32 odd{};
  for (int64_t i = 0; i < n; i += kBlock) {
    vi32 k[kVecs];
    vf32 d[kVecs];
    load_block<kBits>(codes + i * kBits / 8, delta + i, n - i, zero, k, d);
    for (int v = 0; v < kVecs; ++v)
      odd += value(to_float(k[v]), splat(r.alpha) * d[v], scale * r.decay) * 0.0f;
  }
  return !any(odd != 0.0f);
}

struct Group {
  uint8_t* codes;
  const float* delta;
  uint64_t element;  // global index of the first one
  int64_t n;
  float* scale;
  uint8_t* zero;  // or nullptr
};

// One group in two passes: extremes, then codes. Returns whether it was skipped.
template <int kBits, bool kDecay>
bool step_group(const Group& g, const RequantJob& job, Noise& noise) {
  const RequantScalars& r = job.scalars;
  const int lo = min_code(job.scheme);
  const float scale = *g.scale;
  const int zero = g.zero != nullptr ? *g.zero : symmetric_zero(kBits);
  vf32 mn{}, mx{}, sum{};
  vu32 moves{};
  vi32 k[kVecs];
  vf32 d[kVecs];
  for (int64_t i = 0; i < g.n; i += kBlock) {
    load_block<kBits>(g.codes + i * kBits / 8, g.delta + i, g.n - i, zero, k, d);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const vf32 moved = splat(r.alpha) * d[v];
      const vf32 w = value(to_float(k[v]), moved, scale * r.decay);
      mn = min_f(mn, w), mx = max_f(mx, w);
      sum += w;
      moves |= as_u(moved);
    }
  }
  if (any(sum * 0.0f != 0.0f) && !all_finite<kBits>(g.codes, g.delta, g.n, zero, scale, r))
    return true;
  if (!kDecay && !any((moves & 0x7fffffffu) != 0u)) return false;

  const float low = reduce_min(mn), high = reduce_max(mx);
  const bool keep = fits_old_scale(low, high, scale, zero, kBits, job.scheme);
  const GroupParams p =
      keep ? GroupParams{scale, 0.0f, zero} : headroom_params(low, high, kBits, job.scheme);
  // Scaling by 2^16 commutes with the roundings of products and sums.
  const vf32 inv = splat((keep ? inverse_scale(scale) : p.inv) * 65536.0f);
  for (int64_t seg = 0; seg < g.n; seg += Noise::kSpan) {
    const int64_t stop = g.n - seg < Noise::kSpan ? g.n : seg + Noise::kSpan;
    noise.cover(g.element + static_cast<uint64_t>(seg), stop - seg);
    for (int64_t i = seg; i < stop; i += kBlock) {
      vi32 q[kVecs], r16[kVecs];
      noise.block(i - seg, r16);
      prefetch_block(g.delta + i + kAhead);
      load_block<kBits>(g.codes + i * kBits / 8, g.delta + i, stop - i, zero, k, d);
      if (keep) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          vf32 steps = (splat(r.alpha) * d[v]) * inv;
          if constexpr (kDecay) steps = to_float(k[v]) * splat(r.decay_minus_1 * 65536.0f) + steps;
          const vi32 x = to_int_rne(steps) + r16[v];
          q[v] = k[v] + (x >> 16);
        }
      } else {
        for (int v = 0; v < kVecs; ++v) {
          const vf32 w = value(to_float(k[v]), splat(r.alpha) * d[v], scale * r.decay);
          const vi32 x = to_int_rne(w * inv) + r16[v];
          q[v] = x >> 16;
        }
      }
      store_block<kBits>(g.codes + i * kBits / 8, stop - i, q, p.zero, lo);
    }
  }
  if (!keep) {
    *g.scale = p.scale;
    if (g.zero != nullptr) *g.zero = static_cast<uint8_t>(p.zero);
  }
  return false;
}

#if defined(LT_GROUP_TILES)
constexpr int kMostTiles = 8;

// Whole tiles, in one pass: new codes are computed for the old scale beside the extremes, and put
// in place if that scale stays. Returns false, with nothing changed, if it does not.
template <int kBits, bool kDecay>
LT_SIMD bool step_tiles(const Group& g, const RequantJob& job, TileNoise& noise) {
  const RequantScalars& r = job.scalars;
  const float scale = *g.scale, decayed = scale * r.decay;
  if (g.n % kTile != 0 || g.n > kMostTiles * kTile || g.element % kTile != 0 ||
      !(scale >= 0x1p-80f && (decayed >= 0x1p-80f || decayed == 0.0f)))
    return false;
  const int zero = g.zero != nullptr ? *g.zero : symmetric_zero(kBits);
  const int lo = min_code(job.scheme);
  // Codes come times 2^16; these scalings are exact.
  const vf32 unit = splat(decayed * 0x1p-16f), inv = splat(inverse_scale(scale) * 65536.0f);
  vi32 top{};
  vu32 low = splat_u(0x80000000u);
  alignas(64) uint8_t fresh[kMostTiles * kTile * kBits / 8];
  for (int64_t i = 0; i < g.n; i += kTile) {
    for (int j = 0; j < kTile; j += kBlock) prefetch_block(g.delta + i + j + kAhead);
    vu32 words[4];
    noise.words((g.element + static_cast<uint64_t>(i)) / kTile, words);
    const TileCodes<kBits> codes(g.codes + i * kBits / 8);
    vi32 start[8];
    encode_tile_sr<kBits>(
        fresh + i * kBits / 8, words, lo,
        [&](int v) __attribute__((always_inline)) {
          const vf32 k = to_float(start[v] - (zero << 16));
          const vf32 moved = splat(r.alpha) * load<vf32>(g.delta + i + v * kLanes);
          const vf32 w = k * unit + moved;
          top = max_i(top, as_i(as_u(w))), low = max_u(low, as_u(w));
          vf32 steps = moved * inv;
          if constexpr (kDecay) steps = k * splat(r.decay_minus_1) + steps;
          return to_int_rne(steps);
        },
        [&](int v) __attribute__((always_inline)) { return start[v] = codes(v); });
  }
  // As integers: the bits of floats order the positive ones below the non-finite ones; unsigned,
  // the negative ones too, away from 0.
  const float mx = bits_float(static_cast<uint32_t>(reduce_max(top)));
  const float mn = bits_float(largest_lane(low));
  if (!is_finite(mx) || !is_finite(mn) || !fits_old_scale(mn, mx, scale, zero, kBits, job.scheme))
    return false;
  __builtin_memcpy(g.codes, fresh, static_cast<size_t>(g.n) * kBits / 8);
  return true;
}
#endif

template <int kBits, bool kDecay>
int64_t add_sr_simd(const RequantJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.w.shape;
  Noise noise(job.key, job.param, job.role);
#if defined(LT_GROUP_TILES)
  TileNoise tile_noise(job.key, job.param, job.role);
#endif
  int64_t skipped = 0;
  GroupSpan at{};
  if (begin < end) at = group_span(s, begin);
  for (int64_t g = begin; g < end; ++g, next_group(at, s)) {
    const int64_t first = at.row * s.cols + at.col;
    const Group group = {job.w.codes + at.row * row_bytes(s) + code_offset(s, at.col),
                         job.delta + first,
                         job.offset + static_cast<uint64_t>(first),
                         at.n,
                         job.w.scale + g,
                         job.w.zero != nullptr ? job.w.zero + g : nullptr};
#if defined(LT_GROUP_TILES)
    if (step_tiles<kBits, kDecay>(group, job, tile_noise)) continue;
#endif
    skipped += step_group<kBits, kDecay>(group, job, noise);
  }
  return skipped;
}

int64_t add_sr_any(const RequantJob& job, int64_t begin, int64_t end) {
  if (job.scalars.decay != 1.0f)
    return job.w.shape.bits == 8 ? add_sr_simd<8, true>(job, begin, end)
                                 : add_sr_simd<4, true>(job, begin, end);
  return job.w.shape.bits == 8 ? add_sr_simd<8, false>(job, begin, end)
                               : add_sr_simd<4, false>(job, begin, end);
}

}  // namespace

extern const RequantTable LT_CAT(requant_, LT_ISA);
const RequantTable LT_CAT(requant_, LT_ISA) = {add_sr_any};

}  // namespace lowtide::quant
