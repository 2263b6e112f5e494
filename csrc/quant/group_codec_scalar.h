// SPDX-License-Identifier: Apache-2.0
// Group quantization, one group and one element at a time: the definition that every target
// reproduces bit for bit. Storage is in group_format.h.
//
// A group's finite extremes give its scale; x * inv is the element in steps of the scale. Nearest
// rounding takes the nearest integer, ties to even. Stochastic rounding goes through fixed point:
// X = rne(steps * 2^16), q = floor((X + r16) / 2^16) with r16 uniform in [0, 2^16): q is exactly
// unbiased for the value on the 2^-16 grid (research: "SRC"), with integer operations only.
//
// Non-finite elements count as 0: they are encoded as 0 and never reach the scale.
#pragma once
#include "quant/group_format.h"

namespace lowtide::quant {

struct GroupParams {
  float scale = 0;  // value = (code - zero) * scale
  float inv = 0;    // steps = x * inv
  int zero = 0;
};

// Groups whose range is below this are stored as zeros with scale 0: the inverse of a smaller scale
// is not a finite float.
inline constexpr float kTinyRange = 0x1p-100f;
// Elements beyond this saturate: the outermost code of a larger range would decode to infinity.
inline constexpr float kLargest = 0x1.cp127f;
inline constexpr float kHeadroom = 1.0625f;

LT_HD float clamp_f(float x, float lo, float hi) {
  const float y = x < lo ? lo : x;
  return hi < y ? hi : y;
}
LT_HD int clamp_i(int x, int lo, int hi) {
  const int y = x < lo ? lo : x;
  return hi < y ? hi : y;
}

// The smallest bfloat16 at or above x >= 0. Up, so that the group's largest element stays within
// its codes and stochastic rounding unbiased.
LT_HD float bf16_above(float x) {
  const float up = bits_float((float_bits(x) + 0xffffu) & 0xffff0000u);
  return is_finite(up) ? up : bits_float(0x7f7f0000u);
}

// Smallest code in use: a symmetric code never means -2^(bits-1).
LT_HD int min_code(Scheme scheme) { return scheme == Scheme::symmetric ? 1 : 0; }

// The codes are computed with the scale that is stored: with another they would have a gain error.
LT_HD void round_scale(GroupParams& p) {
  p.scale = bf16_above(p.scale);
  p.inv = div_rn(1.0f, p.scale);
}

// Step 127 (or 7) is the largest magnitude. mn, mx: the group's extremes.
LT_HD GroupParams symmetric_params(float mn, float mx, int bits, bool bf16_scale = false) {
  const float amax = clamp_f(mx < -mn ? -mn : mx, 0.0f, kLargest);
  const float top = static_cast<float>(symmetric_zero(bits) - 1);
  GroupParams p;
  p.zero = symmetric_zero(bits);
  if (!(amax >= kTinyRange)) return p;
  p.scale = div_rn(amax, top);
  p.inv = div_rn(top, amax);
  if (bf16_scale) round_scale(p);
  return p;
}

// The range always holds 0, so that 0.0 is a code and groups of one sign keep their resolution
// (Q-GaLore clamps the zero point instead, and such groups collapse). Halves: mx - mn may overflow.
LT_HD GroupParams asymmetric_params(float mn, float mx, int bits, bool bf16_scale) {
  const float top = static_cast<float>(max_code(bits));
  const float lo = clamp_f(mn, -kLargest, 0.0f);
  const float hi = clamp_f(mx, 0.0f, kLargest);
  const float half = hi * 0.5f - lo * 0.5f;
  GroupParams p;
  if (!(half >= kTinyRange)) return p;
  p.scale = div_rn(half, top * 0.5f);
  p.inv = div_rn(top * 0.5f, half);
  if (bf16_scale) round_scale(p);
  p.zero = to_int_rne(clamp_f(div_rn(-lo, p.scale), 0.0f, top));
  return p;
}

// Q-GaLore (arXiv 2407.08296), q_galore_projector.py `_quantize`: s = max(max - min, 1e-5) / M,
// z = clamp(-round(min / s), 0, M); elements are divided by s.
LT_HD GroupParams compat_params(float mn, float mx, int bits, bool bf16_scale) {
  const float top = static_cast<float>(max_code(bits));
  const float half = clamp_f(mx * 0.5f - mn * 0.5f, 0.5f * 1e-5f, kLargest);
  GroupParams p;
  p.scale = div_rn(half, top * 0.5f);
  if (bf16_scale) round_scale(p);
  p.zero = to_int_rne(clamp_f(div_rn(-mn, p.scale), 0.0f, top));
  return p;
}

// For groups that will be stepped in place (requant.h): room for the values to grow before they
// need another scale. Asymmetric groups use one code fewer than there are, so that the rounded-up
// zero point leaves both ends representable.
LT_HD GroupParams headroom_params(float mn, float mx, int bits, Scheme scheme,
                                  bool bf16_scale = false) {
  const float lo = clamp_f(mn * kHeadroom, -kLargest, 0.0f);
  const float hi = clamp_f(mx * kHeadroom, 0.0f, kLargest);
  if (scheme == Scheme::symmetric) return symmetric_params(lo, hi, bits, bf16_scale);
  GroupParams p;
  const float half = hi * 0.5f - lo * 0.5f;
  if (!(half >= kTinyRange)) return p;
  const float half_top = static_cast<float>(max_code(bits) - 1) * 0.5f;
  p.scale = div_rn(half, half_top);
  p.inv = div_rn(half_top, half);
  if (bf16_scale) round_scale(p);
  const float zero = clamp_f(div_rn(-lo, p.scale), 0.0f, static_cast<float>(max_code(bits)));
  p.zero = static_cast<int>(zero);
  if (static_cast<float>(p.zero) < zero) ++p.zero;
  return p;
}

LT_HD GroupParams group_params(float mn, float mx, int bits, Scheme scheme, Range range,
                               bool bf16_scale) {
  if (range == Range::headroom) return headroom_params(mn, mx, bits, scheme, bf16_scale);
  if (scheme == Scheme::symmetric) return symmetric_params(mn, mx, bits, bf16_scale);
  return range == Range::compat ? compat_params(mn, mx, bits, bf16_scale)
                                : asymmetric_params(mn, mx, bits, bf16_scale);
}

// An element in steps of its scale. Only compat groups can lie far outside their codes.
LT_HD float steps_of(float x, const GroupParams& p, bool compat) {
  return compat ? clamp_f(div_rn(x, p.scale), -512.0f, 512.0f) : x * p.inv;
}

LT_HD int round_nearest(float steps) { return to_int_rne(steps); }
// |steps| < 2^15. The shift is arithmetic: it floors.
LT_HD int round_stochastic(float steps, uint32_t r16) {
  return (to_int_rne(steps * 65536.0f) + static_cast<int>(r16)) >> 16;
}

}  // namespace lowtide::quant
