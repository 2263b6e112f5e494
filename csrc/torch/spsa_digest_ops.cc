// SPDX-License-Identifier: Apache-2.0
#include "torch/spsa_digest_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor spsa_digest(const Tensor& w, int64_t offset) {
  const int width = digest_width(w);
  Tensor sum = torch::stable::new_empty(w, {}, ScalarType::Long);
  *static_cast<uint64_t*>(data(sum)) = spsa::digest(const_data(w), width, w.numel(), offset);
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("spsa_digest(Tensor w, int offset=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) { m.impl("spsa_digest", LT_BOX(&spsa_digest)); }

}  // namespace lowtide::torch_ops
