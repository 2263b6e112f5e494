// SPDX-License-Identifier: Apache-2.0
#include "spsa/digest.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

Tensor spsa_digest(const Tensor& w, int64_t offset) {
  const auto width = static_cast<int64_t>(w.element_size());
  STD_TORCH_CHECK(w.is_cpu() && w.is_contiguous() && (width == 1 || width == 2 || width == 4),
                  "lowtide: w must be a contiguous CPU tensor of 1-, 2- or 4-byte elements");
  Tensor sum = torch::stable::new_empty(w, {}, ScalarType::Long);
  *static_cast<uint64_t*>(sum.mutable_data_ptr()) =
      spsa::digest(w.const_data_ptr(), static_cast<int>(width), w.numel(), offset);
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("spsa_digest(Tensor w, int offset=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) { m.impl("spsa_digest", LT_BOX(&spsa_digest)); }

}  // namespace lowtide::torch_ops
