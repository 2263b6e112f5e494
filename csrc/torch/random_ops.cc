// SPDX-License-Identifier: Apache-2.0
#include "base/fpenv.h"
#include "torch/random_args.h"

namespace lowtide::torch_ops {
namespace {

void random_sample(const Tensor& out, int64_t seed, int64_t step, int64_t slot, int64_t param,
                   int64_t role, int64_t offset, int64_t dist) {
  random::sample(f32(out, "out"), out.numel(), offset, stream(seed, step, slot, param, role),
                 static_cast<random::Dist>(dist));
}

void random_add(const Tensor& x, double scale, int64_t seed, int64_t step, int64_t slot,
                int64_t param, int64_t role, int64_t offset, int64_t dist) {
  random::add_scaled(f32(x, "x"), to_float_rn(scale), x.numel(), offset,
                     stream(seed, step, slot, param, role), static_cast<random::Dist>(dist));
}

// One call for a whole model: tensor i is parameter params[i], from element 0.
void random_add_list(const std::vector<Tensor>& xs, double scale, int64_t seed, int64_t step,
                     int64_t slot, const std::vector<int64_t>& params, int64_t role, int64_t dist) {
  STD_TORCH_CHECK(xs.size() == params.size(), "lowtide: xs and params must have equal lengths");
  for (const auto& x : xs) f32(x, "xs");  // all checked before any is changed
  for (size_t i = 0; i < xs.size(); ++i)
    random_add(xs[i], scale, seed, step, slot, params[i], role, 0, dist);
}

Tensor random_dot(const Tensor& x, int64_t seed, int64_t step, int64_t slot, int64_t param,
                  int64_t role, int64_t offset, int64_t dist) {
  const float* p = const_f32(x, "x");
  Tensor out = torch::stable::new_empty(x, {}, ScalarType::Double);
  *static_cast<double*>(out.mutable_data_ptr()) = random::dot(
      p, x.numel(), offset, stream(seed, step, slot, param, role), static_cast<random::Dist>(dist));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "random_sample(Tensor(a!) out, int seed, int step, int slot, int param, int role, int "
      "offset, "
      "int dist) -> ()");
  m.def(
      "random_add_(Tensor(a!) x, float scale, int seed, int step, int slot, int param, int role, "
      "int offset, int dist) -> ()");
  m.def(
      "random_add_list_(Tensor(a!)[] xs, float scale, int seed, int step, int slot, int[] params, "
      "int role, int dist) -> ()");
  m.def(
      "random_dot(Tensor x, int seed, int step, int slot, int param, int role, int offset, int "
      "dist) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("random_sample", LT_BOX(&random_sample));
  m.impl("random_add_", LT_BOX(&random_add));
  m.impl("random_add_list_", LT_BOX(&random_add_list));
  m.impl("random_dot", LT_BOX(&random_dot));
}

}  // namespace lowtide::torch_ops
