// SPDX-License-Identifier: Apache-2.0
// Lists of tensors and the probe of signs that the ops draw for them.
#pragma once
#include "base/fpenv.h"
#include "curvature/probe.h"
#include "torch/curvature_lists.h"

namespace lowtide::torch_ops {

using Tensors = std::vector<Tensor>;
using Params = std::vector<int64_t>;

inline curvature::Probe probe(int64_t seed, int64_t step, int64_t slot) {
  return {u64(seed), u64(step), u32(slot)};
}

inline void check_params(const Tensors& xs, const Params& params) {
  STD_TORCH_CHECK(xs.size() == params.size(), "lowtide: xs and params must have equal lengths");
}

inline std::vector<curvature::SignedInput> signed_inputs(const Tensors& xs, const Params& params) {
  STD_TORCH_CHECK(!xs.empty(), "lowtide: xs must hold a tensor");
  check_params(xs, params);
  std::vector<curvature::SignedInput> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({const_data(xs[i]), dtype_of(xs[i], "xs"), xs[i].numel(), u32(params[i])});
  return list;
}

inline std::vector<curvature::SignedTarget> signed_targets(const Tensors& xs,
                                                           const Params& params) {
  check_params(xs, params);
  std::vector<curvature::SignedTarget> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({data(xs[i]), dtype_of(xs[i], "xs"), xs[i].numel(), u32(params[i])});
  return list;
}

inline std::vector<curvature::SignedPair> signed_pairs(const Tensors& accs, const Tensors& xs,
                                                       const Params& params) {
  check_equal(accs, xs, "accs and xs");
  check_params(xs, params);
  std::vector<curvature::SignedPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({f32(accs[i], "accs"), const_data(xs[i]), dtype_of(xs[i], "xs"), xs[i].numel(),
                    u32(params[i])});
  return list;
}

}  // namespace lowtide::torch_ops
