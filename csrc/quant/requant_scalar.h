// SPDX-License-Identifier: Apache-2.0
// w <- w * decay + alpha * delta on quantized weights, one group and one element at a time: the
// definition that every target reproduces bit for bit.
//
// A group keeps its scale and zero point while its new values fit their codes and use at least half
// of them. Then the arithmetic is in steps of the scale, relative to the old code,
//   code += floor((rne((k * (decay - 1) + alpha * delta / scale) * 2^16) + r16) / 2^16),
// k = code - zero: an element that is not asked to move stays on its code exactly. Deriving the
// scale anew at each step, as Q-GaLore does, re-rounds every untouched weight: they drift by 1.5
// steps rms in 1000 steps. A group that must change scale gets headroom_params.
#pragma once
#include "quant/group_codec_scalar.h"

namespace lowtide::quant {

struct RequantScalars {
  float alpha = 1;
  float decay = 1;
  float decay_minus_1 = 0;  // rounded once from double
};

// No codec writes a smaller scale but 0; the inverse of one from a damaged file would not be
// finite.
inline constexpr float kTinyScale = kTinyRange * 0x1p-9f;

// The new value in units of the weight.
LT_HD float requant_value(int k, float scale, float delta, const RequantScalars& r) {
  return static_cast<float>(k) * (scale * r.decay) + r.alpha * delta;
}

// mn <= 0 <= mx: extremes of the group's new values and 0. Halves: differences may overflow.
LT_HD bool fits_old_scale(float mn, float mx, float scale, int zero, int bits, Scheme scheme) {
  const float lo = decode(min_code(scheme), zero, scale);
  const float hi = decode(max_code(bits), zero, scale);
  if (!(lo <= mn && mx <= hi)) return false;
  if (scale != 0.0f && !(scale >= kTinyScale)) return false;
  if (scheme == Scheme::symmetric) return mx >= 0.5f * hi || mn <= 0.5f * lo;
  return mx * 0.5f - mn * 0.5f >= 0.5f * (hi * 0.5f - lo * 0.5f);
}

// The new code on the old scale; inv = 1 / scale (0 if scale is 0).
LT_HD int requant_kept(int code, int zero, float inv, float delta, const RequantScalars& r,
                       uint32_t r16, int lo, int hi) {
  const float steps = static_cast<float>(code - zero) * r.decay_minus_1 + (r.alpha * delta) * inv;
  return clamp_i(code + round_stochastic(steps, r16), lo, hi);
}

LT_HD float inverse_scale(float scale) { return scale > 0.0f ? div_rn(1.0f, scale) : 0.0f; }

}  // namespace lowtide::quant
