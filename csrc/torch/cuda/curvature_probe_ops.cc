// SPDX-License-Identifier: Apache-2.0
#include "curvature/probe_cuda.h"
#include "torch/cuda/device.h"
#include "torch/curvature_probe_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor sign_dot(const Tensors& xs, int64_t seed, int64_t step, int64_t slot, const Params& params) {
  const OnDevice device(xs);
  const auto list = signed_inputs(xs, params);
  Tensor out = doubles(xs[0], static_cast<int64_t>(xs.size()));
  const Tensor scratch = doubles(xs[0], curvature::cuda::sign_dot_scratch(list));
  check(curvature::cuda::sign_dot(as<double>(out), list, probe(seed, step, slot),
                                  as<double>(scratch), device.stream()),
        "curvature_sign_dot");
  return out;
}

void sign_axpy(const Tensors& xs, double scale, int64_t seed, int64_t step, int64_t slot,
               const Params& params) {
  const OnDevice device(xs);
  const auto list = signed_targets(xs, params);
  curvature::check_apart(list);
  check(curvature::cuda::sign_axpy(list, to_float_rn(scale), probe(seed, step, slot),
                                   device.stream()),
        "curvature_sign_axpy_");
}

void sign_fill(const Tensors& xs, double scale, int64_t seed, int64_t step, int64_t slot,
               const Params& params) {
  const OnDevice device(xs);
  const auto list = signed_targets(xs, params);
  curvature::check_apart(list);
  check(curvature::cuda::sign_fill(list, to_float_rn(scale), probe(seed, step, slot),
                                   device.stream()),
        "curvature_sign_fill_");
}

void sign_fma(const Tensors& accs, const Tensors& xs, double a, double b, int64_t seed,
              int64_t step, int64_t slot, const Params& params, bool squared) {
  const OnDevice device(xs);
  const auto list = signed_pairs(accs, xs, params);
  curvature::check_apart(list);
  check(curvature::cuda::sign_fma(list, {to_float_rn(a), to_float_rn(b), squared},
                                  probe(seed, step, slot), device.stream()),
        "curvature_sign_fma_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("curvature_sign_dot", LT_BOX(&sign_dot));
  m.impl("curvature_sign_axpy_", LT_BOX(&sign_axpy));
  m.impl("curvature_sign_fill_", LT_BOX(&sign_fill));
  m.impl("curvature_sign_fma_", LT_BOX(&sign_fma));
}

}  // namespace lowtide::torch_ops
