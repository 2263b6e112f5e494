// SPDX-License-Identifier: Apache-2.0
#include "base/fpenv.h"
#include "curvature/probe.h"
#include "torch/curvature_lists.h"

namespace lowtide::torch_ops {
namespace {

using Tensors = std::vector<Tensor>;
using Params = std::vector<int64_t>;

curvature::Probe probe(int64_t seed, int64_t step, int64_t slot) {
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(step), static_cast<uint32_t>(slot)};
}

void check_params(const Tensors& xs, const Params& params) {
  STD_TORCH_CHECK(xs.size() == params.size(), "lowtide: xs and params must have equal lengths");
}

Tensor sign_dot(const Tensors& xs, int64_t seed, int64_t step, int64_t slot, const Params& params) {
  STD_TORCH_CHECK(!xs.empty(), "lowtide: xs must hold a tensor");
  check_params(xs, params);
  std::vector<curvature::SignedInput> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({xs[i].const_data_ptr(), dtype_of(xs[i], "xs"), xs[i].numel(),
                    static_cast<uint32_t>(params[i])});
  Tensor out = doubles_like(xs[0], static_cast<int64_t>(xs.size()));
  curvature::sign_dot(static_cast<double*>(out.mutable_data_ptr()), list, probe(seed, step, slot));
  return out;
}

std::vector<curvature::SignedTarget> targets(const Tensors& xs, const Params& params) {
  check_params(xs, params);
  std::vector<curvature::SignedTarget> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({xs[i].mutable_data_ptr(), dtype_of(xs[i], "xs"), xs[i].numel(),
                    static_cast<uint32_t>(params[i])});
  return list;
}

void sign_axpy(const Tensors& xs, double scale, int64_t seed, int64_t step, int64_t slot,
               const Params& params) {
  curvature::sign_axpy(targets(xs, params), to_float_rn(scale), probe(seed, step, slot));
}

void sign_fill(const Tensors& xs, double scale, int64_t seed, int64_t step, int64_t slot,
               const Params& params) {
  curvature::sign_fill(targets(xs, params), to_float_rn(scale), probe(seed, step, slot));
}

void sign_fma(const Tensors& accs, const Tensors& xs, double a, double b, int64_t seed,
              int64_t step, int64_t slot, const Params& params, bool squared) {
  check_equal(accs, xs, "accs and xs");
  check_params(xs, params);
  std::vector<curvature::SignedPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({f32(accs[i], "accs"), xs[i].const_data_ptr(), dtype_of(xs[i], "xs"),
                    xs[i].numel(), static_cast<uint32_t>(params[i])});
  curvature::sign_fma(list, {to_float_rn(a), to_float_rn(b), squared}, probe(seed, step, slot));
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
