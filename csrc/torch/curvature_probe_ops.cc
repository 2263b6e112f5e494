// SPDX-License-Identifier: Apache-2.0
#include "torch/curvature_probe_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor sign_dot(const Tensors& xs, int64_t seed, int64_t step, int64_t slot, const Params& params) {
  const auto list = signed_inputs(xs, params);
  Tensor out = doubles_like(xs[0], static_cast<int64_t>(xs.size()));
  curvature::sign_dot(static_cast<double*>(data(out)), list, probe(seed, step, slot));
  return out;
}

void sign_axpy(const Tensors& xs, double scale, int64_t seed, int64_t step, int64_t slot,
               const Params& params) {
  curvature::sign_axpy(signed_targets(xs, params), to_float_rn(scale), probe(seed, step, slot));
}

void sign_fill(const Tensors& xs, double scale, int64_t seed, int64_t step, int64_t slot,
               const Params& params) {
  curvature::sign_fill(signed_targets(xs, params), to_float_rn(scale), probe(seed, step, slot));
}

void sign_fma(const Tensors& accs, const Tensors& xs, double a, double b, int64_t seed,
              int64_t step, int64_t slot, const Params& params, bool squared) {
  curvature::sign_fma(signed_pairs(accs, xs, params), {to_float_rn(a), to_float_rn(b), squared},
                      probe(seed, step, slot));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "curvature_sign_dot(Tensor[] xs, int seed, int step, int slot, int[] params) -> "
      "Tensor");
  m.def(
      "curvature_sign_axpy_(Tensor(a!)[] xs, float scale, int seed, int step, int slot, int[] "
      "params) -> ()");
  m.def(
      "curvature_sign_fill_(Tensor(a!)[] xs, float scale, int seed, int step, int slot, int[] "
      "params) -> ()");
  m.def(
      "curvature_sign_fma_(Tensor(a!)[] accs, Tensor[] xs, float a, float b, int seed, int step, "
      "int slot, int[] params, bool squared) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("curvature_sign_dot", LT_BOX(&sign_dot));
  m.impl("curvature_sign_axpy_", LT_BOX(&sign_axpy));
  m.impl("curvature_sign_fill_", LT_BOX(&sign_fill));
  m.impl("curvature_sign_fma_", LT_BOX(&sign_fma));
}

}  // namespace lowtide::torch_ops
