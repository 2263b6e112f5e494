// SPDX-License-Identifier: Apache-2.0
#include "torch/spsa_perturb_args.h"

namespace lowtide::torch_ops {
namespace {

void run(const std::vector<Perturbation>& list, int64_t seed, int64_t step, int64_t slot,
         int64_t dist) {
  spsa::perturb(list, u64(seed), u64(step), u32(slot), static_cast<random::Dist>(dist));
}

void spsa_perturb(const Tensor& out, const Tensor& w, double scale, int64_t seed, int64_t step,
                  int64_t slot, int64_t param, int64_t offset, int64_t dist, double threshold) {
  run({perturbation(out, w, scale, threshold, param, offset)}, seed, step, slot, dist);
}

void spsa_perturb_in_place(const Tensor& w, double scale, int64_t seed, int64_t step, int64_t slot,
                           int64_t param, int64_t offset, int64_t dist, double threshold) {
  run({perturbation(w, w, scale, threshold, param, offset)}, seed, step, slot, dist);
}

void spsa_perturb_pair(const Tensor& plus, const Tensor& minus, const Tensor& w, double scale,
                       int64_t seed, int64_t step, int64_t slot, int64_t param, int64_t offset,
                       int64_t dist, double threshold) {
  run({perturbation_pair(plus, minus, w, scale, threshold, param, offset)}, seed, step, slot, dist);
}

// Tensor i is parameter params[i], from element offsets[i].
void spsa_perturb_list(const std::vector<Tensor>& outs, const std::vector<Tensor>& ws,
                       const std::vector<double>& scales, int64_t seed, int64_t step, int64_t slot,
                       const std::vector<int64_t>& params, int64_t dist,
                       const std::vector<double>& thresholds, const std::vector<int64_t>& offsets) {
  run(perturbations(outs, ws, scales, params, thresholds, offsets), seed, step, slot, dist);
}

void spsa_perturb_list_in_place(const std::vector<Tensor>& ws, const std::vector<double>& scales,
                                int64_t seed, int64_t step, int64_t slot,
                                const std::vector<int64_t>& params, int64_t dist,
                                const std::vector<double>& thresholds,
                                const std::vector<int64_t>& offsets) {
  spsa_perturb_list(ws, ws, scales, seed, step, slot, params, dist, thresholds, offsets);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "spsa_perturb(Tensor(a!) out, Tensor w, float scale, int seed, int step, int slot, int "
      "param, int offset, int dist, float threshold) -> ()");
  m.def(
      "spsa_perturb_(Tensor(a!) w, float scale, int seed, int step, int slot, int param, int "
      "offset, int dist, float threshold) -> ()");
  m.def(
      "spsa_perturb_pair(Tensor(a!) plus, Tensor(b!) minus, Tensor w, float scale, int seed, int "
      "step, int slot, int param, int offset, int dist, float threshold) -> ()");
  m.def(
      "spsa_perturb_list(Tensor(a!)[] outs, Tensor[] ws, float[] scales, int seed, int step, int "
      "slot, int[] params, int dist, float[] thresholds, int[] offsets=[]) -> ()");
  m.def(
      "spsa_perturb_list_(Tensor(a!)[] ws, float[] scales, int seed, int step, int slot, int[] "
      "params, int dist, float[] thresholds, int[] offsets=[]) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("spsa_perturb", LT_BOX(&spsa_perturb));
  m.impl("spsa_perturb_", LT_BOX(&spsa_perturb_in_place));
  m.impl("spsa_perturb_list_", LT_BOX(&spsa_perturb_list_in_place));
  m.impl("spsa_perturb_pair", LT_BOX(&spsa_perturb_pair));
  m.impl("spsa_perturb_list", LT_BOX(&spsa_perturb_list));
}

}  // namespace lowtide::torch_ops
