// SPDX-License-Identifier: Apache-2.0
// Extremes of a group's finite elements. For *_simd.cc files only.
#pragma once
#include "quant/group_simd.h"

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

// Extremes of the elements and 0, as integers: signed, bits of floats order the positive ones below
// the non-finite ones; unsigned, the negative ones, away from 0.
template <class In>
LT_SIMD Extremes extremes_with_zero(const In* x, int64_t n) {
  vi32 top{}, top2{};
  vu32 low = splat_u(0x80000000u), low2 = low;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const vu32 u = as_u(load_float(x + i)), v = as_u(load_float(x + i + kLanes));
    top = max_i(top, as_i(u)), top2 = max_i(top2, as_i(v));
    low = max_u(low, u), low2 = max_u(low2, v);
  }
  int32_t mx = reduce_max(max_i(top, top2));
  uint32_t mn = largest_lane(max_u(low, low2));
  for (; i < n; ++i) {
    const uint32_t bits = float_bits(load_scalar(x + i));
    mx = mx < static_cast<int32_t>(bits) ? static_cast<int32_t>(bits) : mx;
    mn = mn < bits ? bits : mn;
  }
  if (mx >= 0x7f800000 || mn >= 0xff800000u) return extremes_of_finite(x, n);
  return {bits_float(mn), bits_float(static_cast<uint32_t>(mx)), 0};
}

}  // namespace
}  // namespace lowtide::quant
