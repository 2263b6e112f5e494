// SPDX-License-Identifier: Apache-2.0
// Matrices as the ops of factored and block-wise second moments take them. Everything is checked
// before anything is changed.
#pragma once
#include "optim/factored.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

using optim::RowMatrix;

inline RowMatrix row_matrix(const Tensor& t, int64_t rows, const char* name) {
  const bool f32 = t.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(
      (f32 || t.scalar_type() == ScalarType::BFloat16) && is_here(t) && t.is_contiguous(),
      "lowtide: ", name, " must be a contiguous float32 or bfloat16 ", kHere, " tensor");
  const bool divides = rows > 0 ? t.numel() % rows == 0 : t.numel() == 0;
  STD_TORCH_CHECK(divides, "lowtide: ", name, " must have a multiple of ", rows, " elements, got ",
                  t.numel());
  return {const_data(t), f32 ? Dtype::f32 : Dtype::bf16, rows, rows > 0 ? t.numel() / rows : 0};
}

inline void same_numel(const Tensor& t, int64_t n, const char* name) {
  STD_TORCH_CHECK(t.numel() == n, "lowtide: ", name, " must have ", n, " elements, got ",
                  t.numel());
}

struct Adafactor {
  float *u, *row, *col;
  RowMatrix g;
};

inline Adafactor adafactor_of(const Tensor& u, const std::optional<Tensor>& grad, const Tensor& row,
                              const Tensor& col) {
  Adafactor a;
  a.u = f32(u, "u");
  a.g = row_matrix(grad ? *grad : u, row.numel(), "g");
  same_numel(u, a.g.rows * a.g.cols, "u");
  const bool factored = col.numel() > 0;
  if (factored) same_numel(col, a.g.cols, "col");
  a.row = f32(row, "row");
  a.col = factored ? f32(col, "col") : nullptr;
  return a;
}

}  // namespace lowtide::torch_ops
