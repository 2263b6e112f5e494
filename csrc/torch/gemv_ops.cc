// SPDX-License-Identifier: Apache-2.0
#include "torch/gemv_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor gemv(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
            int64_t bits, bool nf4, int64_t group, int64_t cols, const Tensor& x) {
  const quant::ConstGroupMatrix w = gemv_matrix(codes, scale, zero, bits, group, cols, x);
  Tensor y = torch::stable::new_empty(x, {w.shape.rows}, ScalarType::Float);
  quant::gemv(f32(y, "y"), w, coding(nf4), const_f32(x, "x"));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "gemv(Tensor codes, Tensor scale, Tensor? zero, int bits, bool nf4, int group, int cols, "
      "Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) { m.impl("gemv", LT_BOX(&gemv)); }

}  // namespace lowtide::torch_ops
