// SPDX-License-Identifier: Apache-2.0
// The update rules, one element at a time. Each takes a gradient, advances the moments and gives
// the direction d of p = (p * decay_before - d) * decay_after; the step size is part of d. All
// scalars of a step are prepared on the host in double and rounded once.
//
//   adam       m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  d = a m / (sqrt(v) s +
//   eps)
//              (Kingma & Ba, ICLR 2015; decoupled decay: Loshchilov & Hutter, ICLR 2019, algorithm
//              2)
//   adabelief  as adam with v = beta2 v + (1 - beta2) (g - m)^2 + eps
//              (Zhuang et al., NeurIPS 2020, algorithm 2)
//   lion       d = a sign(beta1 m + (1 - beta1) g),  m = beta2 m + (1 - beta2) g
//              (Chen et al., NeurIPS 2023, algorithm 2)
//   sgd        m = beta1 m + weight g,  d = a (along_m m + along_g g)
//              (heavy ball: along 1, 0; Nesterov: along beta1, 1; as torch.optim.SGD)
//
// For adam and adabelief s and eps are divided by the step size a: d = a m / (sqrt(v) s' + eps')
// with s = s' / a, eps = eps' / a. torch's form is s' = 1 / sqrt(bias_correction2), a = lr /
// bias_correction1; that of Hugging Face and GaLore s' = 1, a = lr * sqrt(bias_correction2) /
// bias_correction1.
//
// Multiply, then add; square root and division correctly rounded; the order below is the contract.
#pragma once
#include "base/hd.h"

namespace lowtide::optim {

enum class RuleKind : int { adam = 0, adabelief = 1, lion = 2, sgd = 3 };
constexpr int kRuleKinds = 4;

struct StepRule {
  RuleKind kind;
  float a;                               // lion, sgd
  float s, eps;                          // adam, adabelief: divided by the step size
  float v_eps;                           // adabelief: eps as it is, added to v
  float beta1, weight1, beta2, weight2;  // weights of the gradient: 1 - beta, but for sgd
  float along_m, along_g;                // sgd only
  float decay_before, decay_after;       // factors of the weight; 1 changes no bit
};

LT_HD constexpr bool has_second_moment(RuleKind kind) {
  return kind == RuleKind::adam || kind == RuleKind::adabelief;
}

// Advances the moments (v only where there is a second one). Returns what `direction` wants: the
// denominator of rules with a second moment, the direction itself of the others.
LT_HD float advance(const StepRule& r, float g, float* m, float* v) {
  if (r.kind == RuleKind::lion) {
    const float c = r.beta1 * *m + r.weight1 * g;
    *m = r.beta2 * *m + r.weight2 * g;
    return c > 0.0f ? r.a : (c < 0.0f ? -r.a : 0.0f);
  }
  *m = r.beta1 * *m + r.weight1 * g;
  if (r.kind == RuleKind::sgd) return r.a * (r.along_m * *m + r.along_g * g);
  if (r.kind == RuleKind::adam) {
    *v = r.beta2 * *v + r.weight2 * g * g;
  } else {
    const float surprise = g - *m;
    *v = r.beta2 * *v + r.weight2 * surprise * surprise + r.v_eps;
  }
  return sqrt_rn(*v) * r.s + r.eps;
}

LT_HD float direction(const StepRule& r, float m, float advanced) {
  return has_second_moment(r.kind) ? div_rn(m, advanced) : advanced;
}

// False if this element must not be stored: a new moment or direction that is not finite, or a
// negative second moment (a damaged state).
LT_HD bool sound(const StepRule& r, float m, float v, float advanced) {
  return is_finite(m) &&
         (has_second_moment(r.kind) ? float_bits(v) < 0x7f800000u : is_finite(advanced));
}

LT_HD float moved_weight(const StepRule& r, float p, float direction) {
  return (p * r.decay_before - direction) * r.decay_after;
}

}  // namespace lowtide::optim
