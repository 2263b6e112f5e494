// SPDX-License-Identifier: Apache-2.0
// A step of a model is one call, of its codes one call a matrix. Schedules are host memory.
#include "spsa/replay_codes_cuda.h"
#include "spsa/replay_cuda.h"
#include "torch/cuda/device.h"
#include "torch/cuda/steps.h"
#include "torch/spsa_replay_args.h"

namespace lowtide::torch_ops {
namespace {

void spsa_replay_list(const List& ws, const std::vector<int64_t>& params,
                      const std::vector<double>& scales, const std::vector<double>& thresholds,
                      const std::vector<double>& floors, int64_t seed, int64_t dist,
                      const Tensor& round_steps, const Tensor& decays, const Tensor& first,
                      const Tensor& dir_steps, const Tensor& dir_slots, const Tensor& coeffs,
                      const std::vector<int64_t>& offsets) {
  const OnDevice device(ws);
  const auto list = replay_tensors(ws, params, scales, thresholds, floors, offsets);
  const DeviceSteps steps(
      schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs), ws[0]);
  check(spsa::cuda::replay(list, steps.steps(), steps.count(), steps.directions(),
                           static_cast<random::Dist>(dist), device.stream()),
        "spsa_replay_list_");
}

void spsa_replay_codes(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
                       int64_t cols, int64_t bits, int64_t group, int64_t param, double layer_scale,
                       int64_t seed, int64_t dist, const Tensor& round_steps, const Tensor& decays,
                       const Tensor& first, const Tensor& dir_steps, const Tensor& dir_slots,
                       const Tensor& coeffs, int64_t offset) {
  const OnDevice device(codes);
  const auto t = codes_tensor(codes, scale, zero, cols, bits, group, param, layer_scale, offset);
  const DeviceSteps steps(
      schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs), codes);
  check(spsa::cuda::replay_codes({t}, steps.steps(), steps.count(), steps.directions(),
                                 static_cast<random::Dist>(dist), device.stream()),
        "spsa_replay_codes_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("spsa_replay_list_", LT_BOX(&spsa_replay_list));
  m.impl("spsa_replay_codes_", LT_BOX(&spsa_replay_codes));
}

}  // namespace lowtide::torch_ops
