// SPDX-License-Identifier: Apache-2.0
// Weights and codes that steps are replayed on. Everything is checked before anything is changed.
#pragma once
#include <algorithm>
#include <vector>

#include "base/fpenv.h"
#include "spsa/replay.h"
#include "spsa/replay_codes.h"
#include "torch/spsa_schedule.h"

namespace lowtide::torch_ops {

using List = std::vector<Tensor>;

// Two chunks of one tensor may run at the same time: the same storage twice would race.
inline void no_repeats(const List& ws) {
  std::vector<const void*> at;
  for (const auto& w : ws)
    if (w.numel() > 0) at.push_back(w.const_data_ptr());
  std::sort(at.begin(), at.end());
  STD_TORCH_CHECK(std::adjacent_find(at.begin(), at.end()) == at.end(),
                  "lowtide: ws lists the same tensor twice");
}

inline std::vector<spsa::ReplayTensor> replay_tensors(const List& ws,
                                                      const std::vector<int64_t>& params,
                                                      const std::vector<double>& scales,
                                                      const std::vector<double>& thresholds,
                                                      const std::vector<double>& floors,
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
    t.param = u32(params[i]);
    t.offset = offsets.empty() ? 0 : offsets[i];
    t.type = float_type(ws[i], "ws");
    t.scale = to_float_rn(scales[i]);
    t.threshold = to_float_rn(thresholds[i]);
    t.floor = to_float_rn(floors[i]);
    t.w = data(ws[i]);
  }
  return list;
}

inline spsa::CodesTensor codes_tensor(const Tensor& codes, const Tensor& scale,
                                      const std::optional<Tensor>& zero, int64_t cols, int64_t bits,
                                      int64_t group, int64_t param, double layer_scale,
                                      int64_t offset) {
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
  t.param = u32(param), t.offset = offset, t.scale = to_float_rn(layer_scale);
  return t;
}

}  // namespace lowtide::torch_ops
