// SPDX-License-Identifier: Apache-2.0
// Weights and where their perturbed values go. Everything is checked before anything is changed.
#pragma once
#include <vector>

#include "base/fpenv.h"
#include "spsa/perturb.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {

using spsa::Perturbation;

inline Perturbation perturbation(const Tensor& out, const Tensor& w, double scale, double threshold,
                                 int64_t param, int64_t offset) {
  STD_TORCH_CHECK(out.numel() == w.numel(), "lowtide: out and w must have equal sizes");
  Perturbation t;
  t.out_type = float_type(out, "out");
  t.w_type = float_type(w, "w");
  t.out = data(out);
  t.w = const_data(w);
  t.n = w.numel();
  t.offset = offset;
  t.scale = to_float_rn(scale);
  t.threshold = to_float_rn(threshold);
  t.param = u32(param);
  return t;
}

inline Perturbation perturbation_pair(const Tensor& plus, const Tensor& minus, const Tensor& w,
                                      double scale, double threshold, int64_t param,
                                      int64_t offset) {
  Perturbation t = perturbation(plus, w, scale, threshold, param, offset);
  STD_TORCH_CHECK(float_type(minus, "minus") == t.out_type && minus.numel() == w.numel(),
                  "lowtide: plus and minus must have equal dtypes and the size of w");
  t.minus = data(minus);
  return t;
}

inline std::vector<Perturbation> perturbations(const std::vector<Tensor>& outs,
                                               const std::vector<Tensor>& ws,
                                               const std::vector<double>& scales,
                                               const std::vector<int64_t>& params,
                                               const std::vector<double>& thresholds,
                                               const std::vector<int64_t>& offsets) {
  const size_t n = ws.size();
  STD_TORCH_CHECK(outs.size() == n && scales.size() == n && params.size() == n &&
                      thresholds.size() == n && (offsets.empty() || offsets.size() == n),
                  "lowtide: outs, ws, scales, params, thresholds and offsets must have equal "
                  "lengths");
  std::vector<Perturbation> list;
  for (size_t i = 0; i < n; ++i)
    list.push_back(perturbation(outs[i], ws[i], scales[i], thresholds[i], params[i],
                                offsets.empty() ? 0 : offsets[i]));
  return list;
}

}  // namespace lowtide::torch_ops
