// SPDX-License-Identifier: Apache-2.0
#include "quant/matmul.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

using quant::Operand;
using quant::Store;

// bits 0: a dense matrix, rows contiguous; 8 or 4: codes of group_format.h with `cols` columns; -4:
// levels of NF4.
Operand operand(const Tensor& t, const std::optional<Tensor>& scale,
                const std::optional<Tensor>& zero, int64_t bits, int64_t cols, int64_t group,
                const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2, "lowtide: ", name, " must be a 2-D CPU tensor");
  Operand m;
  m.data = t.const_data_ptr();
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

void matmul_out(const Tensor& out, const Tensor& a, const std::optional<Tensor>& a_scale,
                const std::optional<Tensor>& a_zero, int64_t a_bits, int64_t a_cols,
                int64_t a_group, bool ta, const Tensor& b, const std::optional<Tensor>& b_scale,
                const std::optional<Tensor>& b_zero, int64_t b_bits, int64_t b_cols,
                int64_t b_group, bool tb) {
  const Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
  const Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
  float* c = f32(out, "out");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == (ta ? x.cols : x.rows) &&
                      out.size(1) == (tb ? y.rows : y.cols),
                  "lowtide: out must be op(a) rows x op(b) columns");
  quant::matmul(c, x, ta, y, tb);
}

Tensor matmul(const Tensor& a, const std::optional<Tensor>& a_scale,
              const std::optional<Tensor>& a_zero, int64_t a_bits, int64_t a_cols, int64_t a_group,
              bool ta, const Tensor& b, const std::optional<Tensor>& b_scale,
              const std::optional<Tensor>& b_zero, int64_t b_bits, int64_t b_cols, int64_t b_group,
              bool tb) {
  const Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
  const Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
  Tensor out =
      torch::stable::new_empty(a, {ta ? x.cols : x.rows, tb ? y.rows : y.cols}, ScalarType::Float);
  quant::matmul(f32(out, "out"), x, ta, y, tb);
  return out;
}

}  // namespace

#define LT_MATMUL_ARGS                                                                        \
  "Tensor a, Tensor? a_scale, Tensor? a_zero, int a_bits, int a_cols, int a_group, bool ta, " \
  "Tensor b, Tensor? b_scale, Tensor? b_zero, int b_bits, int b_cols, int b_group, bool tb"

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("matmul(" LT_MATMUL_ARGS ") -> Tensor");
  m.def("matmul_out(Tensor(a!) out, " LT_MATMUL_ARGS ") -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("matmul", LT_BOX(&matmul));
  m.impl("matmul_out", LT_BOX(&matmul_out));
}

}  // namespace lowtide::torch_ops
