// SPDX-License-Identifier: Apache-2.0
// The same bits as requant_ref.cc, in blocks of 32 elements. Compiled once per ISA with LT_ISA
// naming the table.
#include "quant/group_simd.h"
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
LT_SIMD void store_block(uint8_t* codes, int64_t n, vi32 q[kVecs]) {
  if (n >= kBlock)
    store_codes<kBits>(codes, q);
  else
    store_codes<kBits>(codes, n, q);
}

LT_SIMD vf32 value(vi32 k, vf32 d, float scale, const RequantScalars& r) {
  return (to_float(k) * splat(scale)) * splat(r.decay) + splat(r.alpha) * d;
}

template <int kBits>
int64_t add_sr_simd(const RequantJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.w.shape;
  const RequantScalars r = job.scalars;
  const int lo = min_code(job.scheme), hi = max_code(kBits);
  Noise noise(job.key, job.param, job.role);
  int64_t skipped = 0;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const int64_t first = at.row * s.cols + at.col;
    uint8_t* codes = job.w.codes + at.row * row_bytes(s) + code_offset(s, at.col);
    const float* delta = job.delta + first;
    const float scale = job.w.scale[g];
    const int zero = job.w.zero != nullptr ? job.w.zero[g] : symmetric_zero(kBits);

    vf32 mn{}, mx{}, odd{};
    vu32 moves{};
    vi32 k[kVecs];
    vf32 d[kVecs];
    for (int64_t i = 0; i < at.n; i += kBlock) {
      load_block<kBits>(codes + i * kBits / 8, delta + i, at.n - i, zero, k, d);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const vf32 w = value(k[v], d[v], scale, r);
        mn = min_f(mn, w), mx = max_f(mx, w);
        odd += w * 0.0f;
        moves |= as_u(splat(r.alpha) * d[v]);
      }
    }
    if (any(odd != 0.0f)) {
      ++skipped;
      continue;
    }
    if (r.decay == 1.0f && !any((moves & 0x7fffffffu) != 0u)) continue;

    const float low = reduce_min(mn), high = reduce_max(mx);
    const bool keep = fits_old_scale(low, high, scale, zero, kBits, job.scheme);
    const GroupParams p = keep ? GroupParams{} : headroom_params(low, high, kBits, job.scheme);
    const vf32 inv = splat(keep ? inverse_scale(scale) : p.inv * 65536.0f);
    for (int64_t seg = 0; seg < at.n; seg += Noise::kSpan) {
      const int64_t stop = at.n - seg < Noise::kSpan ? at.n : seg + Noise::kSpan;
      const uint64_t e = job.offset + static_cast<uint64_t>(first);
      noise.cover(e + seg, stop - seg);
      for (int64_t i = seg; i < stop; i += kBlock) {
        vi32 q[kVecs];
        load_block<kBits>(codes + i * kBits / 8, delta + i, stop - i, zero, k, d);
        if (keep) {
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v) {
            const vf32 steps =
                to_float(k[v]) * splat(r.decay_minus_1) + (splat(r.alpha) * d[v]) * inv;
            const vi32 x = to_int_rne(steps * 65536.0f) + noise.at(e + i + v * kLanes);
            q[v] = clamp_i(k[v] + zero + (x >> 16), lo, hi);
          }
        } else {
          for (int v = 0; v < kVecs; ++v) {
            const vi32 x =
                to_int_rne(value(k[v], d[v], scale, r) * inv) + noise.at(e + i + v * kLanes);
            q[v] = clamp_i((x >> 16) + p.zero, lo, hi);
          }
        }
        store_block<kBits>(codes + i * kBits / 8, stop - i, q);
      }
    }
    if (!keep) {
      job.w.scale[g] = p.scale;
      if (job.w.zero != nullptr) job.w.zero[g] = static_cast<uint8_t>(p.zero);
    }
  }
  return skipped;
}

int64_t add_sr_any(const RequantJob& job, int64_t begin, int64_t end) {
  return job.w.shape.bits == 8 ? add_sr_simd<8>(job, begin, end) : add_sr_simd<4>(job, begin, end);
}

}  // namespace

extern const RequantTable LT_CAT(requant_, LT_ISA);
const RequantTable LT_CAT(requant_, LT_ISA) = {add_sr_any};

}  // namespace lowtide::quant
