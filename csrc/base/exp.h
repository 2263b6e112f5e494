// SPDX-License-Identifier: Apache-2.0
// exp of numbers that are not positive, as in softmax after subtracting the maximum: the
// definition that reference, SIMD (base/exp_simd.h) and CUDA share.
//
// At most 1.01 ulp from exp; 1 at 0. Below -87 (2e-38, a float's smallest normal numbers) and at
// -inf it is 0; NaN gives NaN.
#pragma once
#include "base/hd.h"

namespace lowtide {

// x = n ln 2 + f with |f| <= ln(2) / 2, and exp(f) = 1 + f + f^2 q(f), q of degree 4 (minimax,
// relative error 3.1e-9). ln 2 in two parts, so that n ln 2 is subtracted exactly.
constexpr float kExpLowest = -87.0f;
constexpr float kExpLog2E = 0x1.715476p+0f;
constexpr float kExpLn2High = 0x1.62e4p-1f, kExpLn2Low = 0x1.7f7d1cp-20f;
constexpr float kExpQ0 = 0x1.fffffcp-2f, kExpQ1 = 0x1.555492p-3f, kExpQ2 = 0x1.5558f2p-5f,
                kExpQ3 = 0x1.1239e4p-7f, kExpQ4 = 0x1.6a242cp-10f;

LT_HD float exp_nonpositive(float x) {
  const float c = x > kExpLowest ? x : kExpLowest;
  const float n = static_cast<float>(to_int_rne(c * kExpLog2E));
  const float f = fma_rn(n, -kExpLn2Low, fma_rn(n, -kExpLn2High, c));
  float q = fma_rn(kExpQ4, f, kExpQ3);
  q = fma_rn(q, f, kExpQ2);
  q = fma_rn(q, f, kExpQ1);
  q = fma_rn(q, f, kExpQ0);
  const float e = fma_rn(q, f * f, f) + 1.0f;
  const uint32_t scale = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  const float r = x < kExpLowest ? 0.0f : e * bits_float(scale);
  return x == x ? r : x;
}

}  // namespace lowtide
