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
//   sign       d = a sign(g), no state (Bernstein et al., ICML 2018, algorithm 1)
//   diffgrad   adam's d times 1 / (1 + exp(-|w - g|)), w the gradient of the step before, then w =
//   g
//              (Dubey et al., IEEE TNNLS 2020, equations 8 and 9)
//
// For adam, adabelief and diffgrad s and eps are divided by the step size a: d = a m / (sqrt(v) s'
// + eps') with s = s' / a, eps = eps' / a. torch's form is s' = 1 / sqrt(bias_correction2), a = lr
// / bias_correction1; that of Hugging Face and GaLore s' = 1, a = lr * sqrt(bias_correction2) /
// bias_correction1.
//
// Multiply, then add; square root and division correctly rounded; the order below is the contract.
#pragma once
#include "base/hd.h"

namespace lowtide::optim {

enum class RuleKind : int { adam = 0, adabelief = 1, lion = 2, sgd = 3, sign = 4, diffgrad = 5 };
constexpr int kRuleKinds = 6;

struct StepRule {
  RuleKind kind;
  float a;                               // lion, sgd, sign
  float s, eps;                          // the others: divided by the step size
  float v_eps;                           // adabelief: eps as it is, added to v
  float beta1, weight1, beta2, weight2;  // weights of the gradient: 1 - beta, but for sgd
  float along_m, along_g;                // sgd only
  float decay_before, decay_after;       // factors of the weight; 1 changes no bit
};

// State tensors of a rule: first m, then v (never negative), then w.
LT_HD constexpr int moment_count(RuleKind kind) {
  return kind == RuleKind::sign                            ? 0
         : kind == RuleKind::lion || kind == RuleKind::sgd ? 1
         : kind == RuleKind::diffgrad                      ? 3
                                                           : 2;
}
LT_HD constexpr bool has_second_moment(RuleKind kind) { return moment_count(kind) > 1; }

// exp(-x) for x >= 0, at least exp(-87); anything else, NaN too, counts as 87. 2^t by a polynomial
// of degree 6 (error below 1.3e-7 of it) after the product x log2(e) is rounded.
constexpr float kExpMost = 87.0f, kExpLog2 = -1.44269502f;
template <class F>
LT_HD F exp2_of_part(F f) {
  return (((((0.000154035304f * f + 0.00133335581f) * f + 0.00961812911f) * f + 0.0555041085f) * f +
           0.240226507f) *
              f +
          0.693147182f) *
             f +
         1.0f;
}
LT_HD float exp_negative(float x) {
  const float t = (x < kExpMost ? x : kExpMost) * kExpLog2;
  const int32_t n = to_int_rne(t);
  return exp2_of_part(t - static_cast<float>(n)) * bits_float(static_cast<uint32_t>(n + 127) << 23);
}

// Advances the moments that the rule has. Returns what `direction` wants: the denominator of rules
// with a second moment, the direction itself of the others. Where there is no moment, m becomes g.
LT_HD float advance(const StepRule& r, float g, float* m, float* v, float* w) {
  if (r.kind == RuleKind::sign) {
    *m = g;
    return g > 0.0f ? r.a : (g < 0.0f ? -r.a : 0.0f);
  }
  if (r.kind == RuleKind::lion) {
    const float c = r.beta1 * *m + r.weight1 * g;
    *m = r.beta2 * *m + r.weight2 * g;
    return c > 0.0f ? r.a : (c < 0.0f ? -r.a : 0.0f);
  }
  *m = r.beta1 * *m + r.weight1 * g;
  if (r.kind == RuleKind::sgd) return r.a * (r.along_m * *m + r.along_g * g);
  if (r.kind != RuleKind::adabelief) {
    *v = r.beta2 * *v + r.weight2 * g * g;
  } else {
    const float surprise = g - *m;
    *v = r.beta2 * *v + r.weight2 * surprise * surprise + r.v_eps;
  }
  const float denominator = sqrt_rn(*v) * r.s + r.eps;
  if (r.kind != RuleKind::diffgrad) return denominator;
  const float change = abs_f(*w - g);
  *w = g;
  return denominator * (1.0f + exp_negative(change));
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
