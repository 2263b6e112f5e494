// SPDX-License-Identifier: Apache-2.0
// What the list ops of the curvature family check of their tensors.
#pragma once
#include <vector>

#include "base/dtype.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

inline Dtype dtype_of(const Tensor& t, const char* name) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(is_here(t) && t.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
                  "lowtide: ", name, " must hold contiguous float32 or bfloat16 ", kHere,
                  " tensors");
  return dtype == ScalarType::Float ? Dtype::f32 : Dtype::bf16;
}

inline void check_equal(const std::vector<Tensor>& xs, const std::vector<Tensor>& ys,
                        const char* names) {
  bool equal = xs.size() == ys.size();
  for (size_t i = 0; equal && i < xs.size(); ++i) equal = xs[i].numel() == ys[i].numel();
  STD_TORCH_CHECK(equal, "lowtide: ", names, " must hold tensors of equal sizes");
}

// float64, uninitialised.
inline Tensor doubles_like(const Tensor& t, int64_t n) {
  return torch::stable::new_empty(t, {n}, ScalarType::Double);
}

}  // namespace lowtide::torch_ops
