// SPDX-License-Identifier: Apache-2.0
// The same bits as group_codec_ref.cc, in blocks of 32 elements. Compiled once per ISA with LT_ISA
// naming the table.
//
// Limits (AVX-512): nearest rounding and dequantization run at the speed of memory. Stochastic
// rounding costs 0.33 ns an element in L2, half of it Philox, whose multiplies, shuffles and
// exclusive ors keep both 512-bit ports busy; memory wants about as much, and the two overlap in
// part.
#include "quant/group_codec_scalar.h"
#include "quant/group_codec_table.h"
#include "quant/group_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

struct Extremes {
  float mn, mx;
  int64_t bad;  // non-finite elements
};

// Rare: a group that holds non-finite elements.
template <class In>
__attribute__((noinline)) Extremes extremes_of_finite(const In* x, int64_t n) {
  Extremes r{};
  for (int64_t i = 0; i < n; ++i) {
    const float raw = load_scalar(x + i);
    r.bad += !is_finite(raw);
    const float v = is_finite(raw) ? raw : 0.0f;
    r.mn = i > 0 && r.mn <= v ? r.mn : v;
    r.mx = i > 0 && r.mx >= v ? r.mx : v;
  }
  return r;
}

// Symmetric groups need the largest magnitude only: an integer maximum that also finds non-finite
// elements.
template <class In>
LT_SIMD Extremes extremes_symmetric(const In* x, int64_t n) {
  vi32 a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a = max_i(a, as_i(as_u(load_float(x + i)) & 0x7fffffffu));
    b = max_i(b, as_i(as_u(load_float(x + i + kLanes)) & 0x7fffffffu));
  }
  int32_t top = reduce_max(max_i(a, b));
  for (; i < n; ++i) {
    const int32_t bits = static_cast<int32_t>(float_bits(load_scalar(x + i)) & 0x7fffffffu);
    top = top < bits ? bits : top;
  }
  if (top >= 0x7f800000) return extremes_of_finite(x, n);
  return {0.0f, bits_float(static_cast<uint32_t>(top)), 0};
}

template <class In>
LT_SIMD Extremes extremes_asymmetric(const In* x, int64_t n) {
  const float first = load_scalar(x);
  vf32 mn = splat(first), mx = mn, mn2 = mn, mx2 = mn, sum{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const vf32 u = load_float(x + i), v = load_float(x + i + kLanes);
    mn = min_f(mn, u), mx = max_f(mx, u);
    mn2 = min_f(mn2, v), mx2 = max_f(mx2, v);
    sum += u + v;  // not finite: NaN or infinity among them, or an overflow
  }
  Extremes r = {reduce_min(min_f(mn, mn2)), reduce_max(max_f(mx, mx2)), 0};
  float tail = 0;
  for (; i < n; ++i) {
    const float v = load_scalar(x + i);
    r.mn = v < r.mn ? v : r.mn;
    r.mx = r.mx < v ? v : r.mx;
    tail += v;
  }
  if (any(sum * 0.0f != 0.0f) || !is_finite(tail) || !is_finite(first))
    return extremes_of_finite(x, n);
  return r;
}

// One vector of elements in rounded steps, before zero point and clamp.
template <bool kStochastic, bool kCompat>
LT_SIMD vi32 steps(vf32 x, const GroupParams& p, const uint16_t* noise) {
  vf32 s;
  if constexpr (kCompat) {
    s = max_f(splat(-512.0f), min_f(splat(512.0f), x / splat(p.scale)));
    if constexpr (kStochastic) s = s * 65536.0f;
  } else {
    // Scaling by 2^16 commutes with the rounding of x * inv.
    s = x * splat(kStochastic ? p.inv * 65536.0f : p.inv);
  }
  vi32 q = to_int_rne(s);
  if constexpr (kStochastic) q = (q + load_noise(noise)) >> 16;
  return q;
}

template <class In, int kBits, bool kStochastic, bool kCompat>
int64_t quantize_simd(const QuantizeJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.out.shape;
  const int lo = min_code(job.scheme);
  Noise noise(job.key, job.param, job.role);
  int64_t bad = 0;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const int64_t first = at.row * s.cols + at.col;
    const In* x = static_cast<const In*>(job.x) + first;
    const Extremes r = job.scheme == Scheme::symmetric ? extremes_symmetric(x, at.n)
                                                       : extremes_asymmetric(x, at.n);
    bad += r.bad;
    const GroupParams p = group_params(r.mn, r.mx, kBits, job.scheme, job.range);
    job.out.scale[g] = p.scale;
    if (job.out.zero != nullptr) job.out.zero[g] = static_cast<uint8_t>(p.zero);
    uint8_t* codes = job.out.codes + at.row * row_bytes(s) + code_offset(s, at.col);
    for (int64_t seg = 0; seg < at.n; seg += Noise::kSpan) {
      const int64_t stop = at.n - seg < Noise::kSpan ? at.n : seg + Noise::kSpan;
      const uint16_t* r16 = noise.data();
      if constexpr (kStochastic) {
        r16 = noise.cover(job.offset + static_cast<uint64_t>(first + seg), stop - seg);
      }
      int64_t i = seg;
      if (r.bad == 0)
        for (; i + kBlock <= stop; i += kBlock) {
          prefetch_block(x + i + kAhead);
          vi32 q[kVecs];
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v)
            q[v] = steps<kStochastic, kCompat>(load_float(x + i + v * kLanes), p,
                                               r16 + (i - seg) + v * kLanes);
          store_codes<kBits>(codes + i * kBits / 8, q, p.zero, lo);
        }
      for (; i < stop; i += kBlock) {  // a short block, or a group to be cleaned
        const int64_t n = stop - i < kBlock ? stop - i : kBlock;
        float clean[kBlock] = {};
        for (int64_t j = 0; j < n; ++j) {
          const float v = load_scalar(x + i + j);
          clean[j] = is_finite(v) ? v : 0.0f;
        }
        vi32 q[kVecs];
        for (int v = 0; v < kVecs; ++v)
          q[v] = steps<kStochastic, kCompat>(load<vf32>(clean + v * kLanes), p,
                                             r16 + (i - seg) + v * kLanes);
        store_codes<kBits>(codes + i * kBits / 8, n, q, p.zero, lo);
      }
    }
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

int64_t quantize_any(const QuantizeJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32)
    return job.out.shape.bits == 8 ? quantize_bits<float, 8>(job, begin, end)
                                   : quantize_bits<float, 4>(job, begin, end);
  return job.out.shape.bits == 8 ? quantize_bits<uint16_t, 8>(job, begin, end)
                                 : quantize_bits<uint16_t, 4>(job, begin, end);
}

template <class Out, int kBits>
void dequantize_simd(const DequantizeJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.in.shape;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
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

void dequantize_any(const DequantizeJob& job, int64_t begin, int64_t end) {
  if (job.type == FloatType::f32) {
    if (job.in.shape.bits == 8)
      dequantize_simd<float, 8>(job, begin, end);
    else
      dequantize_simd<float, 4>(job, begin, end);
  } else {
    if (job.in.shape.bits == 8)
      dequantize_simd<uint16_t, 8>(job, begin, end);
    else
      dequantize_simd<uint16_t, 4>(job, begin, end);
  }
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
  return type == FloatType::f32 ? count_nonfinite_simd(static_cast<const float*>(x), begin, end)
                                : count_nonfinite_simd(static_cast<const uint16_t*>(x), begin, end);
}

}  // namespace

extern const GroupCodecTable LT_CAT(group_codec_, LT_ISA);
const GroupCodecTable LT_CAT(group_codec_, LT_ISA) = {quantize_any, dequantize_any,
                                                      count_nonfinite_any};

}  // namespace lowtide::quant
