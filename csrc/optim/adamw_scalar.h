// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov & Hutter, ICLR 2019, algorithm 2), one element at a time. All scalars of a step
// are prepared on the host in double and rounded once, so one rule serves both published forms:
//   torch:                 s = 1 / sqrt(bias_correction2),  a = lr / bias_correction1
//   Hugging Face, GaLore:  s = 1,  a = lr * sqrt(bias_correction2) / bias_correction1
// Multiply, then add; square root and division correctly rounded; the order below is the contract.
#pragma once
#include "base/hd.h"

namespace lowtide::optim {

struct AdamRule {
  float a, s, eps;
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay_before, decay_after;  // factors of the weight; 1 changes no bit
};

LT_HD void adam_moments(const AdamRule& rule, float g, float* m, float* v) {
  *m = rule.beta1 * *m + rule.one_minus_beta1 * g;
  *v = rule.beta2 * *v + rule.one_minus_beta2 * g * g;
}

LT_HD float adam_direction(const AdamRule& rule, float m, float v) {
  return div_rn(rule.a * m, sqrt_rn(v) * rule.s + rule.eps);
}

// A new moment that must not be stored: not finite, or a negative second moment (a damaged state).
LT_HD bool adam_sound(float m, float v) { return is_finite(m) && float_bits(v) < 0x7f800000u; }

LT_HD float adam_weight(const AdamRule& rule, float p, float direction) {
  return (p * rule.decay_before - direction) * rule.decay_after;
}

}  // namespace lowtide::optim
