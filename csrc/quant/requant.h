// SPDX-License-Identifier: Apache-2.0
// Step quantized weights in place: w <- w * decay + alpha * delta, stochastically rounded, in one
// pass. Numerics and the rule for scales: requant_scalar.h.
//
// Must read 4 + bits/8 bytes an element and write bits/8.
#pragma once
#include "quant/group_codec.h"

namespace lowtide::quant {

struct RequantOptions {
  double alpha = 1;
  double decay = 1;         // in [0, 1]
  random::Stream stream{};  // role kRoleWeightSr
  int64_t offset = 0;       // global index of element [0, 0], row-major
};

// delta: rows x cols fp32, contiguous. A group whose new values are not all finite is left as it
// was; returns the number of such groups.
int64_t requant_add_sr(const GroupMatrix& w, const float* delta, const RequantOptions& options);

}  // namespace lowtide::quant
