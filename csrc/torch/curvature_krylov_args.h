// SPDX-License-Identifier: Apache-2.0
// Krylov bases and vectors as tensors.
#pragma once
#include "curvature/krylov.h"
#include "curvature/krylov_order.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

inline curvature::Basis basis_of(const Tensor& rows, const std::optional<Tensor>& scale) {
  using curvature::BasisType;
  const ScalarType dtype = rows.scalar_type();
  STD_TORCH_CHECK(is_here(rows) && rows.dim() == 2 && rows.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                       dtype == ScalarType::Byte),
                  "lowtide: basis must be a contiguous 2-D float32, bfloat16 or uint8 ", kHere,
                  " tensor");
  STD_TORCH_CHECK(scale.has_value() == (dtype == ScalarType::Byte),
                  "lowtide: a uint8 basis has scales, others have none");
  curvature::Basis q;
  q.data = const_data(rows);
  q.type = dtype == ScalarType::Float      ? BasisType::f32
           : dtype == ScalarType::BFloat16 ? BasisType::bf16
                                           : BasisType::int8;
  q.rows = rows.size(0), q.n = rows.size(1);
  if (scale.has_value()) {
    q.scale = const_f32(*scale, "scale");
    STD_TORCH_CHECK(scale->dim() == 2 && scale->size(0) == q.rows &&
                        scale->size(1) == curvature::krylov_groups(q.n),
                    "lowtide: scale must have one number for each 256 elements of each row");
  }
  return q;
}

inline float* projected(const Tensor& w, const curvature::Basis& q, double again) {
  float* x = f32(w, "w");
  STD_TORCH_CHECK(w.numel() == q.n, "lowtide: w must have as many elements as a row of the basis");
  STD_TORCH_CHECK(again >= 0, "lowtide: again must not be negative");
  return x;
}

struct Lanczos {
  float* w;
  const float *q, *previous;
  int64_t n;
};
inline Lanczos lanczos_of(const Tensor& w, const Tensor& q, const std::optional<Tensor>& previous) {
  float* x = f32(w, "w");
  STD_TORCH_CHECK(q.numel() == w.numel() && (!previous || previous->numel() == w.numel()),
                  "lowtide: w, q and previous must have equal sizes");
  return {x, const_f32(q, "q"), previous ? const_f32(*previous, "previous") : nullptr, w.numel()};
}

}  // namespace lowtide::torch_ops
