// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "lowrank/fwht.h"
#include "torch/line_args.h"

namespace lowtide::torch_ops {

// spans x n, or null for all +1.
inline const float* signs_of(const std::optional<Tensor>& signs, int64_t n) {
  if (!signs.has_value()) return nullptr;
  const float* p = const_f32(*signs, "signs");
  STD_TORCH_CHECK(
      signs->dim() == 2 && signs->size(0) == lowrank::fwht_spans(n) && signs->size(1) == n,
      "lowtide: signs must be spans x n");
  return p;
}

}  // namespace lowtide::torch_ops
