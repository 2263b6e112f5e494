// SPDX-License-Identifier: Apache-2.0
// Operands of the matrix product as tensors.
#pragma once
#include "quant/matmul.h"
#include "torch/common.h"

namespace lowtide::torch_ops {

using quant::Operand;
using quant::Store;

// bits 0: a dense matrix, rows contiguous; 8 or 4: codes of group_format.h with `cols` columns; -4:
// levels of NF4.
inline Operand operand(const Tensor& t, const std::optional<Tensor>& scale,
                       const std::optional<Tensor>& zero, int64_t bits, int64_t cols, int64_t group,
                       const char* name) {
  STD_TORCH_CHECK(is_here(t) && t.dim() == 2, "lowtide: ", name, " must be a 2-D ", kHere,
                  " tensor");
  Operand m;
  m.data = const_data(t);
  m.rows = t.size(0);
  if (bits == 0) {
    const ScalarType dtype = t.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, "lowtide: ", name,
                    " must be float32 or bfloat16");
    m.cols = t.size(1);
    m.stride = m.rows > 1 ? t.stride(0) : m.cols;
    m.store = dtype == ScalarType::Float ? Store::f32 : Store::bf16;
    STD_TORCH_CHECK((m.cols <= 1 || t.stride(1) == 1) && m.stride >= m.cols, "lowtide: ", name,
                    " must have contiguous rows");
    return m;
  }
  STD_TORCH_CHECK(
      (bits == 8 || bits == 4 || bits == -4) && cols >= 0 && group >= 32 && group % 32 == 0,
      "lowtide: ", name, ": bits must be 8, 4 or -4 (NF4) and group a multiple of 32");
  m.store = bits == 8 ? Store::int8 : bits == 4 ? Store::int4 : Store::nf4;
  m.cols = cols;
  m.group = group;
  const quant::GroupShape shape{m.rows, cols, group, store_bits(m.store)};
  m.stride = quant::row_bytes(shape);
  const_u8(t, name);
  STD_TORCH_CHECK(t.size(1) == m.stride, "lowtide: ", name, " codes must have ", m.stride,
                  " bytes a row");
  const int64_t groups = m.rows * quant::groups_per_row(shape);
  STD_TORCH_CHECK(scale.has_value() && scale->numel() == groups, "lowtide: ", name,
                  " needs one scale a group");
  m.scale = const_f32(*scale, name);
  if (zero.has_value()) {
    STD_TORCH_CHECK(zero->numel() == groups, "lowtide: ", name, " needs one zero a group");
    m.zero = const_u8(*zero, name);
  }
  return m;
}

inline int64_t rows_of(const Operand& a, bool ta) { return ta ? a.cols : a.rows; }
inline int64_t cols_of(const Operand& b, bool tb) { return tb ? b.rows : b.cols; }

inline float* product_of(const Tensor& out, const Operand& a, bool ta, const Operand& b, bool tb) {
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == rows_of(a, ta) && out.size(1) == cols_of(b, tb),
                  "lowtide: out must be op(a) rows x op(b) columns");
  return f32(out, "out");
}

}  // namespace lowtide::torch_ops
