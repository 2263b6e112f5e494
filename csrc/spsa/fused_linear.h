// SPDX-License-Identifier: Apache-2.0
// A linear layer at both ends of a probe, in one pass over its weights:
//   y_plus  = x_plus  (W + scale z)^T + bias_plus
//   y_minus = x_minus (W - scale z)^T + bias_minus
// A panel of rows of W becomes its pair (spsa/perturb.h) in a buffer of the second cache level, and
// is multiplied at once; the perturbed matrices never exist. The bits are those of perturb(),
// then quant/matmul.h, then one addition.
#pragma once
#include "spsa/perturb.h"

namespace lowtide::spsa {

// Bytes of a panel and its twin, at least 16 rows each.
constexpr int64_t kPanelBytes = 1 << 20;

// Row-major and contiguous. x: rows x in, float32 or bfloat16. w: out x in, any float type. Within
// the product the weights have forward_type, float32 or bfloat16.
struct FusedLinear {
  const void *x_plus = nullptr, *x_minus = nullptr;
  const void* w = nullptr;
  const float *bias_plus = nullptr, *bias_minus = nullptr;  // of `out` elements, or null
  float *y_plus = nullptr, *y_minus = nullptr;              // rows x out
  int64_t rows = 0, in = 0, out = 0;
  FloatType x_type = FloatType::f32, w_type = FloatType::f32, forward_type = FloatType::f32;
  int64_t offset = 0;  // global index of w's first element
  float scale = 0;
  float threshold = kNoThreshold;
  uint32_t param = 0;
};

// Throws lowtide::Error before anything is written.
void fused_linear(const FusedLinear& f, uint64_t seed, uint64_t step, uint32_t slot,
                  random::Dist dist);

}  // namespace lowtide::spsa
