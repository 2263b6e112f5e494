// SPDX-License-Identifier: Apache-2.0
// base/exp.h in vectors, the same bits. For *_simd.cc files only.
#pragma once
#include "base/exp.h"
#include "base/simd.h"

namespace lowtide {
namespace {

LT_SIMD vf32 exp_nonpositive(vf32 x) {
  const vf32 c = max_f(splat(kExpLowest), x);
  const vi32 n = to_int_rne(c * kExpLog2E);
  const vf32 m = to_float(n);
  const vf32 f = fma_rn(m, splat(-kExpLn2Low), fma_rn(m, splat(-kExpLn2High), c));
  vf32 q = fma_rn(splat(kExpQ4), f, splat(kExpQ3));
  q = fma_rn(q, f, splat(kExpQ2));
  q = fma_rn(q, f, splat(kExpQ1));
  q = fma_rn(q, f, splat(kExpQ0));
  const vf32 e = fma_rn(q, f * f, f) + 1.0f;
  const vf32 r = e * as_f((vu32)(n + 127) << 23);
  const vf32 kept = x < kExpLowest ? vf32{} : r;
  return x == x ? kept : x;
}

}  // namespace
}  // namespace lowtide
