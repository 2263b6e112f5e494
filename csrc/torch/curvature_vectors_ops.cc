// SPDX-License-Identifier: Apache-2.0
#include "base/fpenv.h"
#include "curvature/vectors.h"
#include "torch/curvature_lists.h"

namespace lowtide::torch_ops {
namespace {

using Tensors = std::vector<Tensor>;

Tensor dot(const Tensors& xs, const Tensors& ys) {
  STD_TORCH_CHECK(!xs.empty(), "lowtide: xs must hold a tensor");
  check_equal(xs, ys, "xs and ys");
  std::vector<curvature::DotPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({xs[i].const_data_ptr(), ys[i].const_data_ptr(), dtype_of(xs[i], "xs"),
                    dtype_of(ys[i], "ys"), xs[i].numel()});
  Tensor out = doubles_like(xs[0], static_cast<int64_t>(xs.size()));
  curvature::dot(static_cast<double*>(out.mutable_data_ptr()), list);
  return out;
}

void axpby(const Tensors& ys, double a, const Tensors& xs, double b) {
  check_equal(xs, ys, "ys and xs");
  std::vector<curvature::AxpbyPair> list;
  for (size_t i = 0; i < xs.size(); ++i)
    list.push_back({ys[i].mutable_data_ptr(), xs[i].const_data_ptr(), dtype_of(ys[i], "ys"),
                    dtype_of(xs[i], "xs"), xs[i].numel()});
  curvature::axpby(list, to_float_rn(a), to_float_rn(b));
}

Tensor fd_finish(const Tensor& plus, const Tensor& minus, double scale,
                 const std::optional<Tensor>& q) {
  curvature::Difference d;
  d.plus = f32(plus, "plus");
  d.minus = const_f32(minus, "minus");
  d.q = q.has_value() ? const_f32(*q, "q") : nullptr;
  d.n = plus.numel();
  d.scale = to_float_rn(scale);
  STD_TORCH_CHECK(minus.numel() == d.n && (!q.has_value() || q->numel() == d.n),
                  "lowtide: plus, minus and q must have equal sizes");
  Tensor out = doubles_like(plus, 2);
  curvature::fd_finish(static_cast<double*>(out.mutable_data_ptr()), d);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("curvature_dot(Tensor[] xs, Tensor[] ys) -> Tensor");
  m.def("curvature_axpby_(Tensor(a!)[] ys, float a, Tensor[] xs, float b) -> ()");
  m.def(
      "curvature_fd_finish_(Tensor(a!) plus, Tensor minus, float scale, Tensor? q=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("curvature_dot", LT_BOX(&dot));
  m.impl("curvature_axpby_", LT_BOX(&axpby));
  m.impl("curvature_fd_finish_", LT_BOX(&fd_finish));
}

}  // namespace lowtide::torch_ops
