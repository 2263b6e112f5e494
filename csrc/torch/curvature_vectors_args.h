// SPDX-License-Identifier: Apache-2.0
// Lists of pairs of tensors for the vector algebra of curvature.
#pragma once
#include "base/fpenv.h"
#include "curvature/vectors.h"
#include "torch/curvature_lists.h"

namespace lowtide::torch_ops {

using Tensors = std::vector<Tensor>;

inline std::vector<curvature::DotPair> dot_pairs(const Tensors& xs, const Tensors& ys) {
  STD_TORCH_CHECK(!xs.empty(), "lowtide: xs must hold a tensor");
  check_equal(xs, ys, "xs and ys");
  std::vector<curvature::DotPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({const_data(xs[i]), const_data(ys[i]), dtype_of(xs[i], "xs"),
                    dtype_of(ys[i], "ys"), xs[i].numel()});
  return list;
}

inline std::vector<curvature::AxpbyPair> axpby_pairs(const Tensors& ys, const Tensors& xs) {
  check_equal(xs, ys, "ys and xs");
  std::vector<curvature::AxpbyPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({data(ys[i]), const_data(xs[i]), dtype_of(ys[i], "ys"), dtype_of(xs[i], "xs"),
                    xs[i].numel()});
  return list;
}

inline curvature::Difference difference_of(const Tensor& plus, const Tensor& minus, double scale,
                                           const std::optional<Tensor>& q) {
  curvature::Difference d;
  d.plus = f32(plus, "plus");
  d.minus = const_f32(minus, "minus");
  d.q = q.has_value() ? const_f32(*q, "q") : nullptr;
  d.n = plus.numel();
  d.scale = to_float_rn(scale);
  STD_TORCH_CHECK(minus.numel() == d.n && (!q.has_value() || q->numel() == d.n),
                  "lowtide: plus, minus and q must have equal sizes");
  return d;
}

}  // namespace lowtide::torch_ops
