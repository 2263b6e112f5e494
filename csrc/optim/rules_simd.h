// SPDX-License-Identifier: Apache-2.0
// rules.h on vectors, one type a rule. For *_simd.cc files only.
#pragma once
#include "base/simd.h"
#include "optim/rules.h"

namespace lowtide::optim {
namespace {

#define LT_RULE static inline __attribute__((always_inline))

struct Adam {
  static constexpr int kMoments = 2;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32& v, vf32&) {
    m = r.beta1 * m + r.weight1 * g;
    v = r.beta2 * v + r.weight2 * g * g;
    return sqrt_rn(v) * r.s + r.eps;
  }
};

struct AdaBelief {
  static constexpr int kMoments = 2;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32& v, vf32&) {
    m = r.beta1 * m + r.weight1 * g;
    const vf32 surprise = g - m;
    v = r.beta2 * v + r.weight2 * surprise * surprise + r.v_eps;
    return sqrt_rn(v) * r.s + r.eps;
  }
};

struct Lion {
  static constexpr int kMoments = 1;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32&, vf32&) {
    const vf32 c = r.beta1 * m + r.weight1 * g;
    m = r.beta2 * m + r.weight2 * g;
    const vu32 nonzero = (vu32)((c > 0.0f) | (c < 0.0f));
    return with_sign(as_f(as_u(splat(r.a)) & nonzero), as_f(as_u(c) & nonzero));
  }
};

struct Sgd {
  static constexpr int kMoments = 1;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32&, vf32&) {
    m = r.beta1 * m + r.weight1 * g;
    return r.a * (r.along_m * m + r.along_g * g);
  }
};

struct Sign {
  static constexpr int kMoments = 0;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32&, vf32&) {
    m = g;
    const vu32 nonzero = (vu32)((g > 0.0f) | (g < 0.0f));
    return with_sign(as_f(as_u(splat(r.a)) & nonzero), as_f(as_u(g) & nonzero));
  }
};

LT_RULE vf32 exp_negative(vf32 x) {
  const vu32 near = (vu32)(x < kExpMost);
  const vf32 t = as_f((as_u(x) & near) | (as_u(splat(kExpMost)) & ~near)) * kExpLog2;
  const vi32 n = to_int_rne(t);
  return exp2_of_part(t - to_float(n)) * as_f((vu32)(n + 127) << 23);
}

struct DiffGrad {
  static constexpr int kMoments = 3;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32& v, vf32& w) {
    m = r.beta1 * m + r.weight1 * g;
    v = r.beta2 * v + r.weight2 * g * g;
    const vf32 change = abs_f(w - g);
    w = g;
    return (sqrt_rn(v) * r.s + r.eps) * (1.0f + exp_negative(change));
  }
};

#undef LT_RULE

}  // namespace
}  // namespace lowtide::optim
