// SPDX-License-Identifier: Apache-2.0
// The same bits as replay_codes_ref.cc, a segment of up to 2048 columns at a time: its codes, as
// integers, and the sum of a step's directions stay in L1 through all steps. Compiled once per ISA
// with LT_ISA naming the table.
//
// Limits: a word of seven Philox rounds an element and step for the rounding, which along one
// Rademacher direction is most of the work; then the directions, as in spsa/replay_simd.cc.
#include "quant/group_simd.h"
#include "quant/requant_scalar.h"
#include "spsa/directions_simd.h"
#include "spsa/replay_codes_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::spsa {
namespace {

using quant::kBlock;
using quant::kVecs;

LT_SIMD vi32 round_code(vf32 steps, vu32 word) {
  const vf32 size = abs_f(steps);
  const vi32 whole = __builtin_convertvector(size, vi32);
  const vi32 fraction = to_int_rne((size - to_float(whole)) * 0x1p24f);
  const vi32 q = whole - (as_i(word >> 8) < fraction);
  const vi32 negative = as_i(as_u(steps)) >> 31;
  return (q ^ negative) - negative;
}

LT_SIMD vf32 code_steps(vi32 k, float decay_minus_1, vf32 acc, float inv) {
  const vf32 s = to_float(k) * decay_minus_1 + acc * inv;
  const vf32 up = s >= -512.0f ? s : splat(-512.0f);
  return up <= 512.0f ? up : splat(512.0f);
}

// The words that round elements [first, first + n), at words[i].
LT_SIMD void rounding_words(uint32_t* words, uint64_t first, int64_t n, random::Key key,
                            uint32_t param) {
  const random::KeySchedule keys(key);
  for (int64_t i = 0; i < n; i += random::kTileWords)
    random::tile_words((first + static_cast<uint64_t>(i)) / random::kTileWords, keys, param,
                       random::kRoleWeightSr, words + i);
}

template <class D, int kBits>
void replay_segments(const CodesTensor& t, const CodesJob& job, int64_t begin, int64_t end) {
  constexpr auto kGrain = static_cast<uint64_t>(kRangeGrain<D>);
  const quant::GroupShape& s = t.w.shape;
  const int64_t per_row = segments_per_row(s), row_groups = quant::groups_per_row(s);
  const int lo = t.w.zero == nullptr ? 1 : 0, hi = quant::max_code(kBits);
  alignas(64) float acc[kSegment + 512];
  alignas(64) uint32_t words[kSegment + 2 * random::kTileWords];
  alignas(64) int32_t code[kSegment];
  for (int64_t g = begin; g < end; ++g) {
    const int64_t row = g / per_row, col = g % per_row * kSegment;
    const int64_t n = s.cols - col < kSegment ? s.cols - col : kSegment;
    uint8_t* const codes = t.w.codes + row * quant::row_bytes(s) + col * kBits / 8;
    for (int64_t i = 0; i < n; i += kBlock) {
      vi32 q[kVecs];
      if (n - i >= kBlock)
        quant::load_codes<kBits>(codes + i * kBits / 8, q);
      else
        quant::load_codes<kBits>(codes + i * kBits / 8, n - i, q);
      for (int v = 0; v < kVecs; ++v) store(code + i + v * kLanes, q[v]);
    }
    const auto e0 = static_cast<uint64_t>(t.offset + row * s.cols + col);
    const uint64_t first = e0 / kGrain * kGrain,
                   tile = e0 / random::kTileWords * random::kTileWords;
    const auto last = e0 + static_cast<uint64_t>(n);
    const auto range = static_cast<int64_t>((last + kGrain - 1) / kGrain * kGrain - first);
    for (int64_t k = 0; k < job.count; ++k) {
      const Step& step = job.steps[k];
      for (int64_t j = step.begin; j < step.end; ++j) {
        const Direction& d = job.directions[j];
        add_direction<D>(acc, first, range, d.key, t.param, d.coeff * t.scale, j == step.begin);
      }
      if (step.begin == step.end) __builtin_memset(acc, 0, sizeof acc);
      rounding_words(words, tile, static_cast<int64_t>(last - tile), step.round, t.param);
      const float decay_minus_1 = step.decay - 1.0f;
      const float* a = acc + (e0 - first);
      const uint32_t* r = words + (e0 - tile);
      for (int64_t i = 0; i < n; i += kBlock) {
        const int64_t group = row * row_groups + (col + i) / s.group;
        const int zero = t.w.zero != nullptr ? t.w.zero[group] : quant::symmetric_zero(kBits);
        const float inv = quant::inverse_scale(t.w.scale[group]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          const int64_t at = i + v * kLanes;
          const vi32 q = load<vi32>(code + at);
          const vf32 steps = code_steps(q - zero, decay_minus_1, load<vf32>(a + at), inv);
          const vi32 moved = q + round_code(steps, load<vu32>(r + at));
          store(code + at, min_i(max_i(moved, splat_i(lo)), splat_i(hi)));
        }
      }
    }
    for (int64_t i = 0; i < n; i += kBlock) {
      vi32 q[kVecs];
      for (int v = 0; v < kVecs; ++v) q[v] = load<vi32>(code + i + v * kLanes);
      if (n - i >= kBlock)
        quant::store_codes<kBits>(codes + i * kBits / 8, q, 0, lo);
      else
        quant::store_codes<kBits>(codes + i * kBits / 8, n - i, q, 0, lo);
    }
  }
}

template <class D>
void replay_of(const CodesTensor& t, const CodesJob& job, int64_t begin, int64_t end) {
  if (t.w.shape.bits == 8)
    replay_segments<D, 8>(t, job, begin, end);
  else
    replay_segments<D, 4>(t, job, begin, end);
}

void segments(const CodesTensor& t, const CodesJob& job, int64_t begin, int64_t end) {
  random::with_dist(job.dist, [&](auto d) { replay_of<decltype(d)>(t, job, begin, end); });
}

}  // namespace

extern const ReplayCodesTable LT_CAT(replay_codes_, LT_ISA);
const ReplayCodesTable LT_CAT(replay_codes_, LT_ISA) = {segments};

}  // namespace lowtide::spsa
