// SPDX-License-Identifier: Apache-2.0
#include "base/fpenv.h"
#include "spsa/perturb.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {
namespace {

using spsa::Perturbation;

Perturbation perturbation(const Tensor& out, const Tensor& w, double scale, double threshold,
                          int64_t param, int64_t offset) {
  STD_TORCH_CHECK(out.numel() == w.numel(), "lowtide: out and w must have equal sizes");
  Perturbation t;
  t.out_type = float_type(out, "out");
  t.w_type = float_type(w, "w");
  t.out = out.mutable_data_ptr();
  t.w = w.const_data_ptr();
  t.n = w.numel();
  t.offset = offset;
  t.scale = to_float_rn(scale);
  t.threshold = to_float_rn(threshold);
  t.param = static_cast<uint32_t>(param);
  return t;
}

void run(const std::vector<Perturbation>& list, int64_t seed, int64_t step, int64_t slot,
         int64_t dist) {
  spsa::perturb(list, static_cast<uint64_t>(seed), static_cast<uint64_t>(step),
                static_cast<uint32_t>(slot), static_cast<random::Dist>(dist));
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
  Perturbation t = perturbation(plus, w, scale, threshold, param, offset);
  STD_TORCH_CHECK(float_type(minus, "minus") == t.out_type && minus.numel() == w.numel(),
                  "lowtide: plus and minus must have equal dtypes and the size of w");
  t.minus = minus.mutable_data_ptr();
  run({t}, seed, step, slot, dist);
}

// Tensor i is parameter params[i], from element offsets[i].
void spsa_perturb_list(const std::vector<Tensor>& outs, const std::vector<Tensor>& ws,
                       const std::vector<double>& scales, int64_t seed, int64_t step, int64_t slot,
                       const std::vector<int64_t>& params, int64_t dist,
                       const std::vector<double>& thresholds, const std::vector<int64_t>& offsets) {
  const size_t n = ws.size();
  STD_TORCH_CHECK(outs.size() == n && scales.size() == n && params.size() == n &&
                      thresholds.size() == n && (offsets.empty() || offsets.size() == n),
                  "lowtide: outs, ws, scales, params, thresholds and offsets must have equal "
                  "lengths");
  std::vector<Perturbation> list;
  for (size_t i = 0; i < n; ++i)
    list.push_back(perturbation(outs[i], ws[i], scales[i], thresholds[i], params[i],
                                offsets.empty() ? 0 : offsets[i]));
  run(list, seed, step, slot, dist);
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
