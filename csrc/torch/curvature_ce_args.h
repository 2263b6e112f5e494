// SPDX-License-Identifier: Apache-2.0
// Logits and factors of rows as tensors.
#pragma once
#include "curvature/ce_rows.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

using curvature::CeRows;

inline CeRows rows_of(const Tensor& z, const Tensor& r) {
  CeRows a;
  a.z = const_f32(z, "z"), a.r = const_f32(r, "r");
  STD_TORCH_CHECK(z.dim() == 2, "lowtide: z must have two dimensions");
  a.rows = z.size(0), a.cols = z.size(1);
  STD_TORCH_CHECK(r.numel() == a.rows, "lowtide: r must have ", a.rows,
                  " elements, one a row of z, got ", r.numel());
  return a;
}

inline const float* like(const Tensor& t, const Tensor& z, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == z.size(0) && t.size(1) == z.size(1),
                  "lowtide: ", name, " must have the shape of z");
  return const_f32(t, name);
}

}  // namespace lowtide::torch_ops
