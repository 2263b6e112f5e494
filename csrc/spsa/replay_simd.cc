// SPDX-License-Identifier: Apache-2.0
// The same bits as replay_ref.cc, a chunk of 2048 elements at a time: weights and the sum of a
// step's directions stay in L1 through all steps. Compiled once per ISA with LT_ISA naming the
// table.
//
// Limits: one step along one Rademacher direction is bound by memory; each further direction costs
// three instructions a vector (select, add, and the load of 32 signs) and a Philox word for 32
// elements. Gaussians are bound by Philox and Box-Muller as in random/stream_simd.cc. Stochastic
// rounding adds seven Philox rounds for 128 elements and a step.
#include "base/simd.h"
#include "spsa/directions_simd.h"
#include "spsa/masters_simd.h"
#include "spsa/replay_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::spsa {
namespace {

LT_SIMD vf32 stepped(vf32 w, vf32 acc, float decay, float threshold, float floor) {
  const vf32 counted = abs_f(w) <= splat(threshold) ? acc : vf32{};
  return max_f(w * decay + counted, splat(floor));
}

// Stochastic rounding of positions [lo, hi) of a chunk, multiples of 64.
template <class Master>
LT_SIMD void round_chunk(float* w, uint64_t start, int64_t lo, int64_t hi, random::Key key,
                         uint32_t param) {
  const random::KeySchedule keys(key);
  for (int64_t tile = lo / 128 * 128; tile < hi; tile += 128) {
    uint32_t words[random::kTileWords];
    random::tile_words((start + static_cast<uint64_t>(tile)) / 128, keys, param,
                       random::kRoleWeightSr, words);
    for (int half = 0; half < 2; ++half) {
      float* p = w + tile + 64 * half;
#pragma GCC unroll 4
      for (int i = 0; i < 64; i += kLanes) {
        const vu32 word = load<vu32>(words + i);
        store(p + i, Master::rounded(load<vf32>(p + i), half == 0 ? word & 0xffffu : word >> 16));
      }
    }
  }
}

// All steps on positions [lo, hi) of a chunk, multiples of the distribution's grain.
template <class D, class Master>
LT_SIMD void run_steps(float* w, float* acc, const ReplayTensor& t, const ReplayJob& job,
                       uint64_t start, int64_t lo, int64_t hi) {
  const uint64_t first = start + static_cast<uint64_t>(lo);
  // Bits of floats: a comparison with infinity that no compiler may fold.
  const bool plain = float_bits(t.threshold) == 0x7f800000u && float_bits(t.floor) == 0xff800000u;
  for (int64_t k = 0; k < job.count; ++k) {
    const Step& step = job.steps[k];
    if constexpr (D::kTile == random::Rademacher::kTile) {
      if (plain && step.end - step.begin == 1) {  // no sums to keep
        const Direction& d = job.directions[step.begin];
        const random::KeySchedule keys(d.key);
        const vf32 plus = vf32{} + splat(d.coeff * t.scale),
                   minus = vf32{} - splat(d.coeff * t.scale);
        for_signs(
            first, hi - lo, keys,
            t.param, [&](int64_t i, const auto& select) __attribute__((always_inline)) {
              float* p = w + lo + i;
              store(p, load<vf32>(p) * step.decay + select(plus, minus));
            });
        if (Master::kRounds) round_chunk<Master>(w, start, lo, hi, step.round, t.param);
        continue;
      }
    }
    for (int64_t j = step.begin; j < step.end; ++j) {
      const Direction& d = job.directions[j];
      add_direction<D>(acc + lo, first, hi - lo, d.key, t.param, d.coeff * t.scale,
                       j == step.begin);
    }
    if (step.begin == step.end) __builtin_memset(acc + lo, 0, static_cast<size_t>(hi - lo) * 4);
    if (plain) {
      for (int64_t i = lo; i < hi; i += kLanes)
        store(w + i, load<vf32>(w + i) * step.decay + load<vf32>(acc + i));
    } else {
      for (int64_t i = lo; i < hi; i += kLanes)
        store(w + i,
              stepped(load<vf32>(w + i), load<vf32>(acc + i), step.decay, t.threshold, t.floor));
    }
    if (Master::kRounds) round_chunk<Master>(w, start, lo, hi, step.round, t.param);
  }
}

template <class D, class Master>
void replay_chunks(const ReplayTensor& t, const ReplayJob& job, int64_t begin, int64_t end) {
  constexpr int64_t kGrain = kRangeGrain<D>;
  alignas(64) float acc[kChunk], own[kChunk];
  auto* const base = static_cast<typename Master::Element*>(t.w);
  for (int64_t c = begin; c < end; ++c) {
    const ChunkSpan span = chunk_span(t.n, t.offset, c);
    const auto start = static_cast<uint64_t>(span.start);
    const int64_t first = span.start - t.offset;  // of position 0, may be negative
    if constexpr (!Master::kRounds) {
      if (span.lo == 0 && span.hi == kChunk) {  // in place
        run_steps<D, Master>(base + first, acc, t, job, start, 0, kChunk);
        continue;
      }
    }
    const int64_t lo = span.lo / kGrain * kGrain;
    const int64_t hi = (span.hi + kGrain - 1) / kGrain * kGrain;
    // Positions of other tensors count as zeros.
    typename Master::Element part[kChunk];
    auto* p = base + first;
    if (lo != span.lo || hi != span.hi) {
      __builtin_memset(part + lo, 0, static_cast<size_t>(hi - lo) * sizeof *part);
      __builtin_memcpy(part + span.lo, base + (first + span.lo),
                       static_cast<size_t>(span.hi - span.lo) * sizeof *part);
      p = part;
    }
    for (int64_t i = lo; i < hi; i += kLanes) store(own + i, Master::load(p + i));
    run_steps<D, Master>(own, acc, t, job, start, lo, hi);
    for (int64_t i = lo; i < hi; i += kLanes) Master::store(p + i, load<vf32>(own + i));
    if (p == part)
      __builtin_memcpy(base + (first + span.lo), part + span.lo,
                       static_cast<size_t>(span.hi - span.lo) * sizeof *part);
  }
}

template <class D>
void replay_of(const ReplayTensor& t, const ReplayJob& job, int64_t begin, int64_t end) {
  switch (t.type) {
    case FloatType::f32:
      return replay_chunks<D, F32Master>(t, job, begin, end);
    case FloatType::bf16:
      return replay_chunks<D, Bf16Master>(t, job, begin, end);
    case FloatType::f16:
      return replay_chunks<D, HalfMaster>(t, job, begin, end);
  }
}

void chunks(const ReplayTensor& t, const ReplayJob& job, int64_t begin, int64_t end) {
  switch (job.dist) {
    case random::Dist::gaussian:
      return replay_of<random::Gaussian>(t, job, begin, end);
    case random::Dist::ih4:
      return replay_of<random::Ih4>(t, job, begin, end);
    case random::Dist::lut8:
      return replay_of<random::Lut8>(t, job, begin, end);
    case random::Dist::rademacher:
      return replay_of<random::Rademacher>(t, job, begin, end);
  }
}

}  // namespace

extern const ReplayTable LT_CAT(replay_, LT_ISA);
const ReplayTable LT_CAT(replay_, LT_ISA) = {chunks};

}  // namespace lowtide::spsa
