// SPDX-License-Identifier: Apache-2.0
// A step of a model is one call, of its codes one call a matrix. Everything is checked before
// anything is changed.
#include <algorithm>

#include "base/fpenv.h"
#include "spsa/replay.h"
#include "spsa/replay_codes.h"
#include "torch/spsa_schedule.h"

namespace lowtide::torch_ops {
namespace {

using List = std::vector<Tensor>;

// Two chunks of one tensor may run at the same time: the same storage twice would race.
void no_repeats(const List& ws) {
  std::vector<const void*> at;
  for (const auto& w : ws)
    if (w.numel() > 0) at.push_back(w.const_data_ptr());
  std::sort(at.begin(), at.end());
  STD_TORCH_CHECK(std::adjacent_find(at.begin(), at.end()) == at.end(),
                  "lowtide: ws lists the same tensor twice");
}

void spsa_replay_list(const List& ws, const std::vector<int64_t>& params,
                      const std::vector<double>& scales, const std::vector<double>& thresholds,
                      const std::vector<double>& floors, int64_t seed, int64_t dist,
                      const Tensor& round_steps, const Tensor& decays, const Tensor& first,
                      const Tensor& dir_steps, const Tensor& dir_slots, const Tensor& coeffs,
                      const std::vector<int64_t>& offsets) {
  const size_t n = ws.size();
  STD_TORCH_CHECK(params.size() == n && scales.size() == n && thresholds.size() == n &&
                      floors.size() == n && (offsets.empty() || offsets.size() == n),
                  "lowtide: params, scales, thresholds, floors and offsets must list one element a "
                  "tensor");
  no_repeats(ws);
  std::vector<spsa::ReplayTensor> list(n);
  for (size_t i = 0; i < n; ++i) {
    spsa::ReplayTensor& t = list[i];
    t.n = ws[i].numel();
    t.param = static_cast<uint32_t>(params[i]);
    t.offset = offsets.empty() ? 0 : offsets[i];
    t.type = float_type(ws[i], "ws");
    t.scale = to_float_rn(scales[i]);
    t.threshold = to_float_rn(thresholds[i]);
    t.floor = to_float_rn(floors[i]);
    t.w = ws[i].mutable_data_ptr();
  }
  spsa::replay(list, schedule_of(seed, round_steps, decays, first, dir_steps, dir_slots, coeffs),
               static_cast<random::Dist>(dist));
}

void spsa_replay_codes(const Tensor& codes, const Tensor& scale, const std::optional<Tensor>& zero,
                       int64_t cols, int64_t bits, int64_t group, int64_t param, double layer_scale,
                       int64_t seed, int64_t dist, const Tensor& round_steps, const Tensor& decays,
                       const Tensor& first, const Tensor& dir_steps, const Tensor& dir_slots,
                       const Tensor& coeffs, int64_t offset) {
  STD_TORCH_CHECK(scale.dim() == 2, "lowtide: scale must have shape (rows, groups)");
  STD_TORCH_CHECK(bits == 8 || bits == 4, "lowtide: bits must be 8 or 4, got ", bits);
  const quant::GroupShape s{scale.size(0), cols, group, static_cast<int>(bits)};
  quant::check_shape(s);
  const int64_t groups = s.rows * quant::groups_per_row(s);
  STD_TORCH_CHECK(codes.numel() == s.rows * quant::row_bytes(s) && scale.numel() == groups &&
                      (!zero.has_value() || zero->numel() == groups),
                  "lowtide: codes, scale and zero do not fit cols, bits and group");
  spsa::CodesTensor t;
  t.w = {u8(codes, "codes"), const_cast<float*>(const_f32(scale, "scale")),
         zero.has_value() ? const_cast<uint8_t*>(const_u8(*zero, "zero")) : nullptr, s};
  t.param = static_cast<uint32_t>(param), t.offset = offset, t.scale = to_float_rn(layer_scale);
  spsa::replay_codes({t},
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
