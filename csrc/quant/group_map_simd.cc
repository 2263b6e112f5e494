// SPDX-License-Identifier: Apache-2.0
// The same bits as group_map_ref.cc, in blocks of 32 elements. Compiled once per ISA with LT_ISA
// naming the table.
//
// Limits: on AVX-512 a code of 4 bits costs four comparisons and three permutes of 16 levels, all
// on one port (0.2 ns an element, 0.3 in groups of 64); stochastic rounding adds two permutes and
// Philox, as in group_codec_simd.cc (0.5 to 0.6 ns). Decoding is one permute and runs at the speed
// of memory. The baseline has no permute and compares with all levels.
//
// With 8 bits a block of 32 takes 44 instructions on AVX-512 (90 on AVX2), 11 of them permutes
// (20): 0.2 ns an element in cache; rounded stochastically 75 (145) with 13 (24) and Philox, 0.4
// ns; decoding 25 (66) with 6 (8), below 0.1 ns. Beyond the caches memory is the limit of the first
// and the last. The baseline looks its constants up one by one.
#include "base/lookup_simd.h"
#include "quant/dynamic_map_simd.h"
#include "quant/group_extremes_simd.h"
#include "quant/group_map_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)
#define LT_CODER inline __attribute__((always_inline))

namespace lowtide::quant {
namespace {

// How the codes of a map are found and stored.
template <bool kStochastic>
class TabledCoder {
 public:
  static constexpr int kBits = 4;
  explicit LT_CODER TabledCoder(const QuantizeMapJob& job)
      : t(*job.levels), middle(t.middle), level(t.level), per_gap(t.per_gap) {}

  LT_CODER vi32 codes(vf32 y, vi32 noise) const {
    if constexpr (!kStochastic) return rank15<false>(t.middle, middle, y);
    const vf32 at = min_f(splat(t.level[15]), max_f(splat(t.level[0]), y));
    const vi32 code = rank_of_level(at);
    const vi32 up = to_int_rne((at - level.at(code)) * per_gap.at(code));
    return code + ((up + noise) >> 16);
  }
  // A block of codes.
  static LT_CODER void put(uint8_t* p, const vi32 q[kVecs]) {
    vi32 both[kVecs / 2];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs / 2; ++v) both[v] = q[v] | (q[v + kVecs / 2] << 4);
    store_16(p, both);
  }

 private:
  const LevelTable& t;
  Lookup16 middle, level, per_gap;

  // The largest i with level[i] <= at.
  LT_CODER vi32 rank_of_level(vf32 at) const {
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

template <bool is_signed, bool kStochastic>
struct Dynamic8Coder {
  static constexpr int kBits = 8;
  explicit LT_CODER Dynamic8Coder(const QuantizeMapJob&) {}

  LT_CODER vi32 codes(vf32 y, vi32 noise) const {
    return kStochastic ? dynamic_stochastic_bins<is_signed>(y, noise)
                       : dynamic_nearest_bins<is_signed>(y);
  }
  static LT_CODER void put(uint8_t* p, const vi32 q[kVecs]) {
    store_codes<8>(p, q, is_signed ? kDynamicZeroSigned : 0, 0);
  }
};

template <class Coder, class In, bool kStochastic>
int64_t quantize_simd(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.out.shape;
  const Coder coder(job);
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
            q[v] = coder.codes(load_float(x + i + v * kLanes) * splat(p.inv), r16[v]);
          Coder::put(codes + i * Coder::kBits / 8, q);
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
          q[v] = coder.codes(load<vf32>(clean + v * kLanes) * splat(p.inv), r16[v]);
          // the unused nibble of a last byte is 0
          q[v] &= as_i(iota()) + v * kLanes < splat_i(static_cast<int32_t>(n));
        }
        uint8_t bytes[kBlock];
        Coder::put(bytes, q);
        __builtin_memcpy(codes + i * Coder::kBits / 8, bytes,
                         static_cast<size_t>(block_bytes<Coder::kBits>(n)));
      }
    }
  }
  return bad;
}

template <class In, bool kStochastic>
int64_t quantize_rounded(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  if (map_bits(job.map) == 4)
    return quantize_simd<TabledCoder<kStochastic>, In, kStochastic>(job, begin, end);
  return map_is_signed(job.map)
             ? quantize_simd<Dynamic8Coder<true, kStochastic>, In, kStochastic>(job, begin, end)
             : quantize_simd<Dynamic8Coder<false, kStochastic>, In, kStochastic>(job, begin, end);
}

template <class In>
int64_t quantize_from(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  return job.stochastic ? quantize_rounded<In, true>(job, begin, end)
                        : quantize_rounded<In, false>(job, begin, end);
}

int64_t quantize_any(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32) return quantize_from<float>(job, begin, end);
  if (job.type == FloatType::bf16) return quantize_from<uint16_t>(job, begin, end);
  return quantize_from<Half>(job, begin, end);
}

// The values of a group's codes, a block at a time.
class TabledDecoder {
 public:
  static constexpr int kBits = 4;
  LT_CODER TabledDecoder(const DequantizeMapJob& job, float scale)
      : level_(job.levels->level), scale_(splat(scale)) {}
  LT_CODER void block(const uint8_t* p, vf32 x[kVecs]) const {
    vi32 q[kVecs];
    load_codes<4>(p, q);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) x[v] = level_.at(q[v]) * scale_;
  }

 private:
  Lookup16 level_;
  vf32 scale_;
};

template <bool is_signed>
class Dynamic8Decoder {
 public:
  static constexpr int kBits = 8;
  LT_CODER Dynamic8Decoder(const DequantizeMapJob&, float scale) : decode_(scale) {}
  LT_CODER void block(const uint8_t* p, vf32 x[kVecs]) const {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) x[v] = decode_(p + v * kLanes);
  }

 private:
  DynamicDecoder<is_signed> decode_;
};

template <class Decoder, class Out>
void dequantize_simd(const DequantizeMapJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.in.shape;
  GroupSpan at{};
  if (begin < end) at = group_span(s, begin);
  for (int64_t g = begin; g < end; ++g, next_group(at, s)) {
    const uint8_t* codes = job.in.codes + at.row * row_bytes(s) + code_offset(s, at.col);
    Out* out = static_cast<Out*>(job.out) + at.row * s.cols + at.col;
    const Decoder decode(job, job.in.scale[g]);
    vf32 x[kVecs];
    int64_t i = 0;
    for (; i + kBlock <= at.n; i += kBlock) {
      decode.block(codes + i * Decoder::kBits / 8, x);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store_float(out + i + v * kLanes, x[v]);
    }
    if (i < at.n) {
      Out part[kBlock];
      uint8_t bytes[kBlock] = {};
      __builtin_memcpy(bytes, codes + i * Decoder::kBits / 8,
                       static_cast<size_t>(block_bytes<Decoder::kBits>(at.n - i)));
      decode.block(bytes, x);
      for (int v = 0; v < kVecs; ++v) store_float(part + v * kLanes, x[v]);
      __builtin_memcpy(out + i, part, static_cast<size_t>(at.n - i) * sizeof(Out));
    }
  }
}

template <class Out>
void dequantize_to(const DequantizeMapJob& job, int64_t begin, int64_t end) {
  if (map_bits(job.map) == 4)
    dequantize_simd<TabledDecoder, Out>(job, begin, end);
  else if (map_is_signed(job.map))
    dequantize_simd<Dynamic8Decoder<true>, Out>(job, begin, end);
  else
    dequantize_simd<Dynamic8Decoder<false>, Out>(job, begin, end);
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
