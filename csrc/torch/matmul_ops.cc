// SPDX-License-Identifier: Apache-2.0
#include "torch/matmul_args.h"

namespace lowtide::torch_ops {
namespace {

void matmul_out(const Tensor& out, const Tensor& a, const std::optional<Tensor>& a_scale,
                const std::optional<Tensor>& a_zero, int64_t a_bits, int64_t a_cols,
                int64_t a_group, bool ta, const Tensor& b, const std::optional<Tensor>& b_scale,
                const std::optional<Tensor>& b_zero, int64_t b_bits, int64_t b_cols,
                int64_t b_group, bool tb) {
  const Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
  const Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
  quant::matmul(product_of(out, x, ta, y, tb), x, ta, y, tb);
}

Tensor matmul(const Tensor& a, const std::optional<Tensor>& a_scale,
              const std::optional<Tensor>& a_zero, int64_t a_bits, int64_t a_cols, int64_t a_group,
              bool ta, const Tensor& b, const std::optional<Tensor>& b_scale,
              const std::optional<Tensor>& b_zero, int64_t b_bits, int64_t b_cols, int64_t b_group,
              bool tb) {
  const Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
  const Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
  Tensor out = torch::stable::new_empty(a, {rows_of(x, ta), cols_of(y, tb)}, ScalarType::Float);
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
