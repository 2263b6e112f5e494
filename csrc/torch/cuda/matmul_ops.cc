// SPDX-License-Identifier: Apache-2.0
#include "base/overlap.h"
#include "quant/matmul_cuda.h"
#include "torch/cuda/device.h"
#include "torch/matmul_args.h"

namespace lowtide::torch_ops {
namespace {

void matmul_out(const Tensor& out, const Tensor& a, const std::optional<Tensor>& a_scale,
                const std::optional<Tensor>& a_zero, int64_t a_bits, int64_t a_cols,
                int64_t a_group, bool ta, const Tensor& b, const std::optional<Tensor>& b_scale,
                const std::optional<Tensor>& b_zero, int64_t b_bits, int64_t b_cols,
                int64_t b_group, bool tb) {
  const OnDevice device(a);
  const Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
  const Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
  float* c = product_of(out, x, ta, y, tb);
  const int64_t bytes = 4 * out.numel();
  const auto dense = [](const Tensor& t) {  // what a matrix of any strides reaches over
    return t.numel() == 0 ? 0
                          : static_cast<int64_t>(t.element_size()) *
                                ((t.size(0) - 1) * t.stride(0) + t.size(1));
  };
  STD_TORCH_CHECK(apart(c, bytes, x.data, dense(a)) && apart(c, bytes, y.data, dense(b)),
                  "lowtide: out must lie apart from a and b");
  check(quant::cuda::matmul(c, x, ta, y, tb, device.stream()), "matmul_out");
}

Tensor matmul(const Tensor& a, const std::optional<Tensor>& a_scale,
              const std::optional<Tensor>& a_zero, int64_t a_bits, int64_t a_cols, int64_t a_group,
              bool ta, const Tensor& b, const std::optional<Tensor>& b_scale,
              const std::optional<Tensor>& b_zero, int64_t b_bits, int64_t b_cols, int64_t b_group,
              bool tb) {
  const OnDevice device(a);
  const Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
  const Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
  Tensor out = empty(a, {rows_of(x, ta), cols_of(y, tb)}, ScalarType::Float);
  check(quant::cuda::matmul(as<float>(out), x, ta, y, tb, device.stream()), "matmul");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("matmul", LT_BOX(&matmul));
  m.impl("matmul_out", LT_BOX(&matmul_out));
}

}  // namespace lowtide::torch_ops
