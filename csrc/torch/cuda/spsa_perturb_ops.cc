// SPDX-License-Identifier: Apache-2.0
#include "spsa/perturb_cuda.h"
#include "torch/cuda/device.h"
#include "torch/spsa_perturb_args.h"

namespace lowtide::torch_ops {
namespace {

void run(const OnDevice& device, const std::vector<Perturbation>& list, int64_t seed, int64_t step,
         int64_t slot, int64_t dist) {
  for (const Perturbation& t : list) spsa::check_perturbation(t);
  check(spsa::cuda::perturb(list, u64(seed), u64(step), u32(slot), static_cast<random::Dist>(dist),
                            device.stream()),
        "spsa_perturb");
}

void spsa_perturb(const Tensor& out, const Tensor& w, double scale, int64_t seed, int64_t step,
                  int64_t slot, int64_t param, int64_t offset, int64_t dist, double threshold) {
  const OnDevice device(w);
  run(device, {perturbation(out, w, scale, threshold, param, offset)}, seed, step, slot, dist);
}

void spsa_perturb_in_place(const Tensor& w, double scale, int64_t seed, int64_t step, int64_t slot,
                           int64_t param, int64_t offset, int64_t dist, double threshold) {
  const OnDevice device(w);
  run(device, {perturbation(w, w, scale, threshold, param, offset)}, seed, step, slot, dist);
}

void spsa_perturb_pair(const Tensor& plus, const Tensor& minus, const Tensor& w, double scale,
                       int64_t seed, int64_t step, int64_t slot, int64_t param, int64_t offset,
                       int64_t dist, double threshold) {
  const OnDevice device(w);
  run(device, {perturbation_pair(plus, minus, w, scale, threshold, param, offset)}, seed, step,
      slot, dist);
}

// Tensor i is parameter params[i], from element offsets[i].
void spsa_perturb_list(const std::vector<Tensor>& outs, const std::vector<Tensor>& ws,
                       const std::vector<double>& scales, int64_t seed, int64_t step, int64_t slot,
                       const std::vector<int64_t>& params, int64_t dist,
                       const std::vector<double>& thresholds, const std::vector<int64_t>& offsets) {
  const OnDevice device(ws);
  run(device, perturbations(outs, ws, scales, params, thresholds, offsets), seed, step, slot, dist);
}

void spsa_perturb_list_in_place(const std::vector<Tensor>& ws, const std::vector<double>& scales,
                                int64_t seed, int64_t step, int64_t slot,
                                const std::vector<int64_t>& params, int64_t dist,
                                const std::vector<double>& thresholds,
                                const std::vector<int64_t>& offsets) {
  spsa_perturb_list(ws, ws, scales, seed, step, slot, params, dist, thresholds, offsets);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("spsa_perturb", LT_BOX(&spsa_perturb));
  m.impl("spsa_perturb_", LT_BOX(&spsa_perturb_in_place));
  m.impl("spsa_perturb_list_", LT_BOX(&spsa_perturb_list_in_place));
  m.impl("spsa_perturb_pair", LT_BOX(&spsa_perturb_pair));
  m.impl("spsa_perturb_list", LT_BOX(&spsa_perturb_list));
}

}  // namespace lowtide::torch_ops
