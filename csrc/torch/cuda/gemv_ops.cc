// SPDX-License-Identifier: Apache-2.0
#include "quant/gemv_cuda.h"
#include "torch/cuda/device.h"
#include "torch/gemv_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor gemv(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
            int64_t bits, bool nf4, int64_t group, int64_t cols, const Tensor& x) {
  const OnDevice device(x);
  const quant::ConstGroupMatrix w = gemv_matrix(codes, scale, zero, bits, group, cols, x);
  Tensor y = floats(x, w.shape.rows);
  check(quant::cuda::gemv(as<float>(y), w, coding(nf4), const_f32(x, "x"), device.stream()),
        "gemv");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) { m.impl("gemv", LT_BOX(&gemv)); }

}  // namespace lowtide::torch_ops
