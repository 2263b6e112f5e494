// SPDX-License-Identifier: Apache-2.0
#include "torch/channel_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor channel_energy(const Tensor& x, bool columns) {
  const optim::EnergyMatrix m = energy_matrix(x);
  Tensor energy = torch::stable::new_empty(x, {columns ? m.cols : m.rows}, ScalarType::Double);
  optim::channel_energy(static_cast<double*>(data(energy)), m, channels(columns));
  return energy;
}

Tensor ordered_sum(const Tensor& x) {
  check_here(x, ScalarType::Double, "x", "float64");
  Tensor sum = torch::stable::new_empty(x, {}, ScalarType::Double);
  *static_cast<double*>(data(sum)) =
      optim::ordered_sum(static_cast<const double*>(const_data(x)), x.numel());
  return sum;
}

void combine(const Tensor& p, const std::optional<Tensor>& g, const std::optional<Tensor>& k,
             int64_t along, bool sign, const std::optional<Tensor>& u,
             const std::optional<Tensor>& index, int64_t chosen, double alpha, double decay_before,
             double decay_after, bool stochastic, int64_t seed, int64_t step, int64_t param,
             int64_t offset) {
  optim::combine(combine_matrix(p, g, k, along, sign, u, index, chosen, stochastic, param, offset),
                 optim::make_update_rule(alpha, decay_before, decay_after), u64(seed), u64(step));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("channel_energy(Tensor x, bool columns) -> Tensor");
  m.def("ordered_sum(Tensor x) -> Tensor");
  m.def(
      "combine_(Tensor(a!) p, Tensor? g, Tensor? k, int along, bool sign, Tensor? u, Tensor? "
      "index, "
      "int chosen, float alpha, float decay_before, float decay_after, bool stochastic, int seed, "
      "int step, int param, int offset) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("channel_energy", LT_BOX(&channel_energy));
  m.impl("ordered_sum", LT_BOX(&ordered_sum));
  m.impl("combine_", LT_BOX(&combine));
}

}  // namespace lowtide::torch_ops
