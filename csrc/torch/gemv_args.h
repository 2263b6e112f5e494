// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "quant/gemv.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

// The packed matrix of a product with the vector x.
inline quant::ConstGroupMatrix gemv_matrix(const Tensor& codes, const Tensor& scale,
                                           const std::optional<Tensor>& zero, int64_t bits,
                                           int64_t group, int64_t cols, const Tensor& x) {
  STD_TORCH_CHECK(codes.dim() == 2 && scale.dim() == 2 && x.dim() == 1 && x.size(0) == cols,
                  "lowtide: codes and scale must have two dimensions, x one of size cols");
  const quant::GroupShape s{codes.size(0), cols, group, static_cast<int>(bits)};
  quant::check_shape(s);
  const int64_t groups = s.rows * quant::groups_per_row(s);
  STD_TORCH_CHECK(codes.size(1) == quant::row_bytes(s) && scale.numel() == groups &&
                      (!zero.has_value() || zero->numel() == groups),
                  "lowtide: codes, scale and zero do not fit the matrix, bits and group");
  return {const_u8(codes, "codes"), const_f32(scale, "scale"),
          zero.has_value() ? const_u8(*zero, "zero") : nullptr, s};
}

inline quant::Coding coding(bool nf4) { return nf4 ? quant::Coding::nf4 : quant::Coding::integer; }

}  // namespace lowtide::torch_ops
