// SPDX-License-Identifier: Apache-2.0
// The same bits as group_map_ref.cc, in blocks of 32 elements. Compiled once per ISA with LT_ISA
// naming the table.
//
// Limits: on AVX-512 a code costs four comparisons and three permutes of 16 levels, all on one port
// (0.2 ns an element, 0.3 in groups of 64); stochastic rounding adds two permutes and Philox, as in
// group_codec_simd.cc (0.5 to 0.6 ns). Decoding is one permute and runs at the speed of memory. The
// baseline has no permute and compares with all
// levels.
#include "base/lookup_simd.h"
#include "quant/group_extremes_simd.h"
#include "quant/group_map_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

// A block of codes, first n of 32; those beyond must be 0 (the unused nibble of a last byte).
LT_SIMD void store_nibbles(uint8_t* p, int64_t n, const vi32 q[kVecs]) {
  vi32 both[kVecs / 2];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs / 2; ++v) both[v] = q[v] | (q[v + kVecs / 2] << 4);
  if (n >= kBlock) {
    store_16(p, both);
    return;
  }
  uint8_t bytes[16];
  store_16(bytes, both);
  __builtin_memcpy(p, bytes, block_bytes<4>(n));
}

template <bool kStochastic>
struct Encoder {
  const LevelTable& t;
  Lookup16 middle, level, per_gap;

  explicit inline __attribute__((always_inline)) Encoder(const LevelTable& table)
      : t(table), middle(table.middle), level(table.level), per_gap(table.per_gap) {}

  inline __attribute__((always_inline)) vi32 codes(vf32 y, vi32 noise) const {
    if constexpr (!kStochastic) return rank15<false>(t.middle, middle, y);
    const vf32 at = min_f(splat(t.level[15]), max_f(splat(t.level[0]), y));
    const vi32 code = rank_of_level(at);
    const vi32 up = to_int_rne((at - level.at(code)) * per_gap.at(code));
    return code + ((up + noise) >> 16);
  }

 private:
  // The largest i with level[i] <= at.
  inline __attribute__((always_inline)) vi32 rank_of_level(vf32 at) const {
#if defined(__AVX2__)
    vi32 r{};
#pragma GCC unroll 4
    for (int step = 8; step > 0; step /= 2) {
      const vf32 l = step == 8 ? splat(t.level[8]) : level.at(r + step);
      r = step_past<true>(r, step, at, l);
    }
    return r;
#else
    return rank15<true>(t.level + 1, level, at);
#endif
  }
};

template <class In, bool kStochastic>
int64_t quantize_simd(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.out.shape;
  const Encoder<kStochastic> encode(*job.levels);
  const bool is_signed = map_is_signed(job.map);
  Noise noise(job.key, job.param, job.role);
  int64_t bad = 0;
  GroupSpan at{};
  if (begin < end) at = group_span(s, begin);
  for (int64_t g = begin; g < end; ++g, next_group(at, s)) {
    const int64_t first = at.row * s.cols + at.col;
    const In* x = static_cast<const In*>(job.x) + first;
    const Extremes r = is_signed ? extremes_symmetric(x, at.n) : extremes_asymmetric(x, at.n);
    bad += r.bad;
    // extremes_of_finite gives both ends
    const float largest = is_signed && r.mx < -r.mn ? -r.mn : r.mx;
    const GroupParams p = map_params(largest, job.bf16_scale);
    job.out.scale[g] = p.scale;
    uint8_t* codes = job.out.codes + at.row * row_bytes(s) + code_offset(s, at.col);
    for (int64_t seg = 0; seg < at.n; seg += Noise::kSpan) {
      const int64_t stop = at.n - seg < Noise::kSpan ? at.n : seg + Noise::kSpan;
      if constexpr (kStochastic)
        noise.cover(job.offset + static_cast<uint64_t>(first + seg), stop - seg);
      int64_t i = seg;
      vi32 q[kVecs], r16[kVecs] = {};
      if (r.bad == 0)
        for (; i + kBlock <= stop; i += kBlock) {
          prefetch_block(x + i + kAhead);
          if constexpr (kStochastic) noise.block(i - seg, r16);
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v)
            q[v] = encode.codes(load_float(x + i + v * kLanes) * splat(p.inv), r16[v]);
          store_nibbles(codes + i / 2, kBlock, q);
        }
      for (; i < stop; i += kBlock) {  // a short block, or a group to be cleaned
        const int64_t n = stop - i < kBlock ? stop - i : kBlock;
        float clean[kBlock] = {};
        for (int64_t j = 0; j < n; ++j) {
          const float v = load_scalar(x + i + j);
          clean[j] = is_finite(v) ? v : 0.0f;
        }
        if constexpr (kStochastic) noise.block(i - seg, r16);
        for (int v = 0; v < kVecs; ++v) {
          q[v] = encode.codes(load<vf32>(clean + v * kLanes) * splat(p.inv), r16[v]);
          q[v] &= as_i(iota()) + v * kLanes < splat_i(static_cast<int32_t>(n));
        }
        store_nibbles(codes + i / 2, n, q);
      }
    }
  }
  return bad;
}

template <class In>
int64_t quantize_from(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  return job.stochastic ? quantize_simd<In, true>(job, begin, end)
                        : quantize_simd<In, false>(job, begin, end);
}

int64_t quantize_any(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32) return quantize_from<float>(job, begin, end);
  if (job.type == FloatType::bf16) return quantize_from<uint16_t>(job, begin, end);
  return quantize_from<Half>(job, begin, end);
}

template <class Out>
void dequantize_to(const DequantizeMapJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.in.shape;
  const Lookup16 level(job.levels->level);
  GroupSpan at{};
  if (begin < end) at = group_span(s, begin);
  for (int64_t g = begin; g < end; ++g, next_group(at, s)) {
    const uint8_t* codes = job.in.codes + at.row * row_bytes(s) + code_offset(s, at.col);
    Out* out = static_cast<Out*>(job.out) + at.row * s.cols + at.col;
    const vf32 scale = splat(job.in.scale[g]);
    vi32 q[kVecs];
    int64_t i = 0;
    for (; i + kBlock <= at.n; i += kBlock) {
      load_codes<4>(codes + i / 2, q);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store_float(out + i + v * kLanes, level.at(q[v]) * scale);
    }
    if (i < at.n) {
      Out part[kBlock];
      load_codes<4>(codes + i / 2, at.n - i, q);
      for (int v = 0; v < kVecs; ++v) store_float(part + v * kLanes, level.at(q[v]) * scale);
      __builtin_memcpy(out + i, part, static_cast<size_t>(at.n - i) * sizeof(Out));
    }
  }
}

void dequantize_any(const DequantizeMapJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32)
    dequantize_to<float>(job, begin, end);
  else if (job.type == FloatType::bf16)
    dequantize_to<uint16_t>(job, begin, end);
  else
    dequantize_to<Half>(job, begin, end);
}

}  // namespace

extern const GroupMapTable LT_CAT(group_map_, LT_ISA);
const GroupMapTable LT_CAT(group_map_, LT_ISA) = {quantize_any, dequantize_any};

}  // namespace lowtide::quant
