// SPDX-License-Identifier: Apache-2.0
#include "spsa/digest_cuda.h"
#include "torch/cuda/device.h"
#include "torch/spsa_digest_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor spsa_digest(const Tensor& w, int64_t offset) {
  const OnDevice device(w);
  const int width = digest_width(w);
  Tensor sum = empty(w, {}, ScalarType::Long);
  check(spsa::cuda::digest(as<uint64_t>(sum), const_data(w), width, w.numel(), offset,
                           device.stream()),
        "spsa_digest");
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) { m.impl("spsa_digest", LT_BOX(&spsa_digest)); }

}  // namespace lowtide::torch_ops
