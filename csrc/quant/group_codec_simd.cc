// SPDX-License-Identifier: Apache-2.0
// The same bits as group_codec_ref.cc, in blocks of 32 elements. Compiled once per ISA with LT_ISA
// naming the table.
//
// Limits (AVX-512): instructions on the two 512-bit ports for 32 elements are 4 for the extremes, 4
// to scale and round, 4 to pack, and for stochastic rounding 20 for Philox and 4 to add its words:
// 16 cycles with the groups' own 2, and 25 are measured in L2 (0.2 ns an element, nearest 0.085).
// Memory alone wants 0.3 ns; what is missing is overlap.
#include "quant/group_codec_scalar.h"
#include "quant/group_codec_table.h"
#include "quant/group_extremes_simd.h"
#include "quant/group_tile_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

// One vector of elements in steps, or for stochastic rounding in steps times 2^16, rounded.
template <bool kStochastic, bool kCompat>
LT_SIMD vi32 fixed(vf32 x, const GroupParams& p) {
  vf32 s;
  if constexpr (kCompat) {
    s = max_f(splat(-512.0f), min_f(splat(512.0f), x / splat(p.scale)));
    if constexpr (kStochastic) s = s * 65536.0f;
  } else {
    // Scaling by 2^16 commutes with the rounding of x * inv.
    s = x * splat(kStochastic ? p.inv * 65536.0f : p.inv);
  }
  return to_int_rne(s);
}

// Before zero point and clamp.
template <bool kStochastic, bool kCompat>
LT_SIMD vi32 steps(vf32 x, const GroupParams& p, vi32 noise) {
  vi32 q = fixed<kStochastic, kCompat>(x, p);
  if constexpr (kStochastic) q = (q + noise) >> 16;
  return q;
}

template <class In>
struct Group {
  const In* x;
  uint8_t* codes;
  uint64_t element;  // global index of x[0]
  int64_t n;
  GroupParams p;
  bool clean;  // every element is finite
};

// The elements [from, g.n), in blocks of 32.
template <class In, int kBits, bool kStochastic, bool kCompat>
LT_SIMD void quantize_blocks(const Group<In>& g, int64_t from, int lo, Noise& noise) {
  for (int64_t seg = from; seg < g.n; seg += Noise::kSpan) {
    const int64_t stop = g.n - seg < Noise::kSpan ? g.n : seg + Noise::kSpan;
    if constexpr (kStochastic) noise.cover(g.element + static_cast<uint64_t>(seg), stop - seg);
    int64_t i = seg;
    vi32 q[kVecs], r16[kVecs] = {};
    if (g.clean)
      for (; i + kBlock <= stop; i += kBlock) {
        prefetch_block(g.x + i + kAhead);
        if constexpr (kStochastic) noise.block(i - seg, r16);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v)
          q[v] = steps<kStochastic, kCompat>(load_float(g.x + i + v * kLanes), g.p, r16[v]);
        store_codes<kBits>(g.codes + i * kBits / 8, q, g.p.zero, lo);
      }
    for (; i < stop; i += kBlock) {  // a short block, or a group to be cleaned
      const int64_t n = stop - i < kBlock ? stop - i : kBlock;
      float clean[kBlock] = {};
      for (int64_t j = 0; j < n; ++j) {
        const float v = load_scalar(g.x + i + j);
        clean[j] = is_finite(v) ? v : 0.0f;
      }
      if constexpr (kStochastic) noise.block(i - seg, r16);
      for (int v = 0; v < kVecs; ++v)
        q[v] = steps<kStochastic, kCompat>(load<vf32>(clean + v * kLanes), g.p, r16[v]);
      store_codes<kBits>(g.codes + i * kBits / 8, n, q, g.p.zero, lo);
    }
  }
}

#if defined(LT_GROUP_TILES)
// As many tiles of 128 elements as the group holds; returns where they end.
template <class In, int kBits, bool kStochastic, bool kCompat>
LT_SIMD int64_t quantize_tiles(const Group<In>& g, int lo, TileNoise& noise) {
  if (!g.clean || (kStochastic && g.element % kTile != 0)) return 0;
  const vi32 zero = splat_i(g.p.zero << 16);
  int64_t i = 0;
  for (; i + kTile <= g.n; i += kTile) {
    for (int j = 0; j < kTile; j += kBlock) prefetch_block(g.x + i + j + kAhead);
    const auto part = [&](int v) __attribute__((always_inline)) {
      return fixed<kStochastic, kCompat>(load_float(g.x + i + v * kLanes), g.p);
    };
    uint8_t* const codes = g.codes + i * kBits / 8;
    if constexpr (kStochastic) {
      vu32 words[4];
      noise.words((g.element + static_cast<uint64_t>(i)) / kTile, words);
      encode_tile_sr<kBits>(codes, words, lo, part, [&](int) { return zero; });
    } else {
      encode_tile<kBits>(codes, g.p.zero, lo, part);
    }
  }
  return i;
}
#endif

template <class In, int kBits, bool kStochastic, bool kCompat>
int64_t quantize_simd(const QuantizeJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.out.shape;
  const int lo = min_code(job.scheme);
  Noise noise(job.key, job.param, job.role);
#if defined(LT_GROUP_TILES)
  TileNoise tile_noise(job.key, job.param, job.role);
#endif
  int64_t bad = 0;
  GroupSpan at{};
  if (begin < end) at = group_span(s, begin);
  Group<In> group{}, next{};
  // A group's scale is computed while the one before is encoded: the chain through reductions and
  // divisions is as long as the encoding.
  for (int64_t g = begin; g <= end; ++g) {
    if (g < end) {
      const int64_t first = at.row * s.cols + at.col;
      const In* x = static_cast<const In*>(job.x) + first;
      const Extremes r = kCompat ? extremes_asymmetric(x, at.n) : extremes_with_zero(x, at.n);
      bad += r.bad;
      const GroupParams p = group_params(r.mn, r.mx, kBits, job.scheme, job.range, job.bf16_scale);
      job.out.scale[g] = p.scale;
      if (job.out.zero != nullptr) job.out.zero[g] = static_cast<uint8_t>(p.zero);
      next = {x,
              job.out.codes + at.row * row_bytes(s) + code_offset(s, at.col),
              job.offset + static_cast<uint64_t>(first),
              at.n,
              p,
              r.bad == 0};
      next_group(at, s);
    }
    if (g > begin) {
      int64_t done = 0;
#if defined(LT_GROUP_TILES)
      done = quantize_tiles<In, kBits, kStochastic, kCompat>(group, lo, tile_noise);
#endif
      if (done < group.n) quantize_blocks<In, kBits, kStochastic, kCompat>(group, done, lo, noise);
    }
    group = next;
  }
  return bad;
}

template <class In, int kBits>
int64_t quantize_bits(const QuantizeJob& job, int64_t begin, int64_t end) {
  if (job.stochastic)
    return job.range == Range::compat ? quantize_simd<In, kBits, true, true>(job, begin, end)
                                      : quantize_simd<In, kBits, true, false>(job, begin, end);
  return job.range == Range::compat ? quantize_simd<In, kBits, false, true>(job, begin, end)
                                    : quantize_simd<In, kBits, false, false>(job, begin, end);
}

template <class In>
int64_t quantize_from(const QuantizeJob& job, int64_t begin, int64_t end) {
  return job.out.shape.bits == 8 ? quantize_bits<In, 8>(job, begin, end)
                                 : quantize_bits<In, 4>(job, begin, end);
}

int64_t quantize_any(const QuantizeJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32) return quantize_from<float>(job, begin, end);
  if (job.type == FloatType::bf16) return quantize_from<uint16_t>(job, begin, end);
  return quantize_from<Half>(job, begin, end);
}

template <class Out, int kBits>
void dequantize_simd(const DequantizeJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.in.shape;
  GroupSpan at{};
  if (begin < end) at = group_span(s, begin);
  for (int64_t g = begin; g < end; ++g, next_group(at, s)) {
    const uint8_t* codes = job.in.codes + at.row * row_bytes(s) + code_offset(s, at.col);
    Out* out = static_cast<Out*>(job.out) + at.row * s.cols + at.col;
    const int zero = job.in.zero != nullptr ? job.in.zero[g] : symmetric_zero(kBits);
    const vf32 scale = splat(job.in.scale[g]);
    vi32 q[kVecs];
    int64_t i = 0;
    for (; i + kBlock <= at.n; i += kBlock) {
      load_codes<kBits>(codes + i * kBits / 8, q);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        store_float(out + i + v * kLanes, to_float(q[v] - zero) * scale);
    }
    if (i < at.n) {
      Out part[kBlock];
      load_codes<kBits>(codes + i * kBits / 8, at.n - i, q);
      for (int v = 0; v < kVecs; ++v) store_float(part + v * kLanes, to_float(q[v] - zero) * scale);
      __builtin_memcpy(out + i, part, static_cast<size_t>(at.n - i) * sizeof(Out));
    }
  }
}

template <class Out>
void dequantize_to(const DequantizeJob& job, int64_t begin, int64_t end) {
  if (job.in.shape.bits == 8)
    dequantize_simd<Out, 8>(job, begin, end);
  else
    dequantize_simd<Out, 4>(job, begin, end);
}

void dequantize_any(const DequantizeJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32)
    dequantize_to<float>(job, begin, end);
  else if (job.type == FloatType::bf16)
    dequantize_to<uint16_t>(job, begin, end);
  else
    dequantize_to<Half>(job, begin, end);
}

template <class In>
int64_t count_nonfinite_simd(const In* x, int64_t begin, int64_t end) {
  int64_t bad = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t stop = end - i < 4096 ? end : i + 4096;
    bad += extremes_symmetric(x + i, stop - i).bad;
    i = stop;
  }
  return bad;
}

int64_t count_nonfinite_any(const void* x, FloatType type, int64_t begin, int64_t end) {
  if (type == FloatType::f32) return count_nonfinite_simd(static_cast<const float*>(x), begin, end);
  if (type == FloatType::bf16)
    return count_nonfinite_simd(static_cast<const uint16_t*>(x), begin, end);
  return count_nonfinite_simd(static_cast<const Half*>(x), begin, end);
}

}  // namespace

extern const GroupCodecTable LT_CAT(group_codec_, LT_ISA);
const GroupCodecTable LT_CAT(group_codec_, LT_ISA) = {quantize_any, dequantize_any,
                                                      count_nonfinite_any};

}  // namespace lowtide::quant
