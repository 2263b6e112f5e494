// SPDX-License-Identifier: Apache-2.0
#include "optim/channel_energy_cuda.h"
#include "optim/combine_cuda.h"
#include "torch/channel_args.h"
#include "torch/cuda/device.h"

namespace lowtide::torch_ops {
namespace {

Tensor channel_energy(const Tensor& x, bool columns) {
  const OnDevice device(x);
  const optim::EnergyMatrix m = energy_matrix(x);
  const optim::Channels of = channels(columns);
  Tensor energy = doubles(x, columns ? m.cols : m.rows);
  const Tensor scratch = doubles(x, optim::cuda::channel_energy_scratch(m.rows, m.cols, of));
  check(
      optim::cuda::channel_energy(as<double>(energy), m, of, as<double>(scratch), device.stream()),
      "channel_energy");
  return energy;
}

Tensor ordered_sum(const Tensor& x) {
  const OnDevice device(x);
  check_here(x, ScalarType::Double, "x", "float64");
  Tensor sum = empty(x, {}, ScalarType::Double);
  check(optim::cuda::ordered_sum(as<double>(sum), as<const double>(x), x.numel(), device.stream()),
        "ordered_sum");
  return sum;
}

// That index ascends within p is not checked: it would have to come back to the host.
void combine(const Tensor& p, const std::optional<Tensor>& g, const std::optional<Tensor>& k,
             int64_t along, bool sign, const std::optional<Tensor>& u,
             const std::optional<Tensor>& index, int64_t chosen, double alpha, double decay_before,
             double decay_after, bool stochastic, int64_t seed, int64_t step, int64_t param,
             int64_t offset) {
  const OnDevice device(p);
  check(optim::cuda::combine(
            combine_matrix(p, g, k, along, sign, u, index, chosen, stochastic, param, offset),
            optim::make_update_rule(alpha, decay_before, decay_after), u64(seed), u64(step),
            device.stream()),
        "combine_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("channel_energy", LT_BOX(&channel_energy));
  m.impl("ordered_sum", LT_BOX(&ordered_sum));
  m.impl("combine_", LT_BOX(&combine));
}

}  // namespace lowtide::torch_ops
