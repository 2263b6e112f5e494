// SPDX-License-Identifier: Apache-2.0
// A step of a model is one call, of its codes one call a matrix.
#include "torch/spsa_replay_args.h"

namespace lowtide::torch_ops {
namespace {

void spsa_replay_list(const List& ws, const std::vector<int64_t>& params,
                      const std::vector<double>& scales, const std::vector<double>& thresholds,
                      const std::vector<double>& floors, int64_t seed, int64_t dist,
                      const Tensor& round_steps, const Tensor& decays, const Tensor& first,
                      const Tensor& dir_steps, const Tensor& dir_slots, const Tensor& coeffs,
                      const std::vector<int64_t>& offsets) {
  spsa::replay(replay_tensors(ws, params, scales, thresholds, floors, offsets),
               schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs),
               static_cast<random::Dist>(dist));
}

void spsa_replay_codes(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
                       int64_t cols, int64_t bits, int64_t group, int64_t param, double layer_scale,
                       int64_t seed, int64_t dist, const Tensor& round_steps, const Tensor& decays,
                       const Tensor& first, const Tensor& dir_steps, const Tensor& dir_slots,
                       const Tensor& coeffs, int64_t offset) {
  spsa::replay_codes(
      {codes_tensor(codes, scale, zero, cols, bits, group, param, layer_scale, offset)},
      schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs),
      static_cast<random::Dist>(dist));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "spsa_replay_list_(Tensor(a!)[] ws, int[] params, float[] scales, float[] thresholds, "
      "float[] floors, int seed, int dist, Tensor round_steps, Tensor decays, Tensor first, Tensor "
      "dir_steps, Tensor dir_slots, Tensor coeffs, int[] offsets=[]) -> ()");
  m.def(
      "spsa_replay_codes_(Tensor(a!) codes, Tensor scale, Tensor? zero, int cols, int bits, int "
      "group, int param, float layer_scale, int seed, int dist, Tensor round_steps, Tensor decays, "
      "Tensor first, Tensor dir_steps, Tensor dir_slots, Tensor coeffs, int offset=0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("spsa_replay_list_", LT_BOX(&spsa_replay_list));
  m.impl("spsa_replay_codes_", LT_BOX(&spsa_replay_codes));
}

}  // namespace lowtide::torch_ops
