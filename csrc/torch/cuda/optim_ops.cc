// SPDX-License-Identifier: Apache-2.0
#include "optim/apply_update_cuda.h"
#include "optim/fused_step_cuda.h"
#include "torch/cuda/device.h"
#include "torch/optim_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor run(const OnDevice& device, const Tensor& like, const std::vector<StepTensor>& list,
           const optim::StepRule& rule, int64_t seed, int64_t step, const char* op) {
  Tensor skipped = empty(like, {}, ScalarType::Long);
  check(optim::cuda::fused_step(list, rule, u64(seed), u64(step), as<int64_t>(skipped),
                                device.stream()),
        op);
  return skipped;
}

Tensor fused_step(const List& ps, const List& gs, const List& ms, const List& vs, const List& ws,
                  const List& m_absmax, const List& v_absmax, const List& w_absmax, int64_t rule,
                  int64_t bits, const std::vector<double>& scalars, bool stochastic, int64_t seed,
                  int64_t step, const std::vector<int64_t>& params,
                  const std::vector<int64_t>& offsets) {
  const OnDevice device(ps);
  const auto made = optim::make_rule(rule, scalars);
  const States states{ms, vs, ws, m_absmax, v_absmax, w_absmax, bits};
  return run(device, ps[0], weights_and_states(ps, gs, states, made, stochastic, params, offsets),
             made, seed, step, "fused_step_");
}

Tensor fused_direction(const List& rs, const List& ms, const List& vs, const List& ws,
                       const List& m_absmax, const List& v_absmax, const List& w_absmax,
                       int64_t rule, int64_t bits, const std::vector<double>& scalars) {
  const OnDevice device(rs);
  const auto made = optim::make_rule(rule, scalars);
  const States states{ms, vs, ws, m_absmax, v_absmax, w_absmax, bits};
  return run(device, rs[0], directions_and_states(rs, states, made), made, 0, 0,
             "fused_direction_");
}

void apply_update(const List& ps, const List& us, double alpha, double decay_before,
                  double decay_after, bool stochastic, int64_t seed, int64_t step,
                  const std::vector<int64_t>& params, const std::vector<int64_t>& offsets) {
  const OnDevice device(ps);
  const auto rule = optim::make_update_rule(alpha, decay_before, decay_after);
  check(optim::cuda::apply_update(updates(ps, us, stochastic, params, offsets), rule, u64(seed),
                                  u64(step), device.stream()),
        "apply_update_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("fused_step_", LT_BOX(&fused_step));
  m.impl("fused_direction_", LT_BOX(&fused_direction));
  m.impl("apply_update_", LT_BOX(&apply_update));
}

}  // namespace lowtide::torch_ops
