// SPDX-License-Identifier: Apache-2.0
#include "torch/curvature_vectors_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor dot(const Tensors& xs, const Tensors& ys) {
  const auto list = dot_pairs(xs, ys);
  Tensor out = doubles_like(xs[0], static_cast<int64_t>(xs.size()));
  curvature::dot(static_cast<double*>(data(out)), list);
  return out;
}

void axpby(const Tensors& ys, double a, const Tensors& xs, double b) {
  curvature::axpby(axpby_pairs(ys, xs), to_float_rn(a), to_float_rn(b));
}

Tensor fd_finish(const Tensor& plus, const Tensor& minus, double scale,
                 const std::optional<Tensor>& q) {
  const curvature::Difference d = difference_of(plus, minus, scale, q);
  Tensor out = doubles_like(plus, 2);
  curvature::fd_finish(static_cast<double*>(data(out)), d);
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
