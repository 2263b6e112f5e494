// SPDX-License-Identifier: Apache-2.0
// List forms only: a step over a model is one call.
#include "torch/optim_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor run(const List& like, const std::vector<StepTensor>& list, const optim::StepRule& rule,
           int64_t seed, int64_t step) {
  STD_TORCH_CHECK(!like.empty(), "lowtide: the list of tensors is empty");
  Tensor skipped = torch::stable::new_empty(like[0], {}, ScalarType::Long);
  *static_cast<int64_t*>(data(skipped)) =
      optim::fused_step(list, rule, static_cast<uint64_t>(seed), static_cast<uint64_t>(step));
  return skipped;
}

Tensor fused_step(const List& ps, const List& gs, const List& ms, const List& vs, const List& ws,
                  const List& m_absmax, const List& v_absmax, const List& w_absmax, int64_t rule,
                  int64_t bits, const std::vector<double>& scalars, bool stochastic, int64_t seed,
                  int64_t step, const std::vector<int64_t>& params,
                  const std::vector<int64_t>& offsets) {
  const auto made = optim::make_rule(rule, scalars);
  const States states{ms, vs, ws, m_absmax, v_absmax, w_absmax, bits};
  return run(ps, weights_and_states(ps, gs, states, made, stochastic, params, offsets), made, seed,
             step);
}

Tensor fused_direction(const List& rs, const List& ms, const List& vs, const List& ws,
                       const List& m_absmax, const List& v_absmax, const List& w_absmax,
                       int64_t rule, int64_t bits, const std::vector<double>& scalars) {
  const auto made = optim::make_rule(rule, scalars);
  const States states{ms, vs, ws, m_absmax, v_absmax, w_absmax, bits};
  return run(rs, directions_and_states(rs, states, made), made, 0, 0);
}

void apply_update(const List& ps, const List& us, double alpha, double decay_before,
                  double decay_after, bool stochastic, int64_t seed, int64_t step,
                  const std::vector<int64_t>& params, const std::vector<int64_t>& offsets) {
  const auto rule = optim::make_update_rule(alpha, decay_before, decay_after);
  optim::apply_update(updates(ps, us, stochastic, params, offsets), rule, u64(seed), u64(step));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  // rule: optim::RuleKind; scalars: the arguments of its make_*_rule; bits of a moment: 32, 8 or 4.
  m.def(
      "fused_step_(Tensor(a!)[] ps, Tensor[] gs, Tensor(b!)[] ms, Tensor(c!)[] vs, Tensor(f!)[] "
      "ws, Tensor(d!)[] "
      "m_absmax, Tensor(e!)[] v_absmax, Tensor(g!)[] w_absmax, int rule, int bits, float[] "
      "scalars, bool stochastic, int "
      "seed, int step, int[] params, int[] offsets=[]) -> Tensor");
  m.def(
      "fused_direction_(Tensor(a!)[] rs, Tensor(b!)[] ms, Tensor(c!)[] vs, Tensor(f!)[] ws, "
      "Tensor(d!)[] m_absmax, "
      "Tensor(e!)[] v_absmax, Tensor(g!)[] w_absmax, int rule, int bits, float[] scalars) -> "
      "Tensor");
  m.def(
      "apply_update_(Tensor(a!)[] ps, Tensor[] us, float alpha, float decay_before, float "
      "decay_after, bool stochastic, int seed, int step, int[] params, int[] offsets=[]) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("fused_step_", LT_BOX(&fused_step));
  m.impl("fused_direction_", LT_BOX(&fused_direction));
  m.impl("apply_update_", LT_BOX(&apply_update));
}

}  // namespace lowtide::torch_ops
