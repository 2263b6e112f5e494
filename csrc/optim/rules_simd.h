// SPDX-License-Identifier: Apache-2.0
// rules.h on vectors, one type a rule. For *_simd.cc files only.
#pragma once
#include "base/simd.h"
#include "optim/rules.h"

namespace lowtide::optim {
namespace {

#define LT_RULE static inline __attribute__((always_inline))

struct Adam {
  static constexpr bool kSecond = true;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32& v) {
    m = r.beta1 * m + r.weight1 * g;
    v = r.beta2 * v + r.weight2 * g * g;
    return sqrt_rn(v) * r.s + r.eps;
  }
};

struct AdaBelief {
  static constexpr bool kSecond = true;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32& v) {
    m = r.beta1 * m + r.weight1 * g;
    const vf32 surprise = g - m;
    v = r.beta2 * v + r.weight2 * surprise * surprise + r.v_eps;
    return sqrt_rn(v) * r.s + r.eps;
  }
};

struct Lion {
  static constexpr bool kSecond = false;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32&) {
    const vf32 c = r.beta1 * m + r.weight1 * g;
    m = r.beta2 * m + r.weight2 * g;
    const vu32 nonzero = (vu32)((c > 0.0f) | (c < 0.0f));
    return with_sign(as_f(as_u(splat(r.a)) & nonzero), as_f(as_u(c) & nonzero));
  }
};

struct Sgd {
  static constexpr bool kSecond = false;
  LT_RULE vf32 advance(const StepRule& r, vf32 g, vf32& m, vf32&) {
    m = r.beta1 * m + r.weight1 * g;
    return r.a * (r.along_m * m + r.along_g * g);
  }
};

#undef LT_RULE

}  // namespace
}  // namespace lowtide::optim
