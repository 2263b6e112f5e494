// SPDX-License-Identifier: Apache-2.0
#include "torch/curvature_krylov_args.h"

namespace lowtide::torch_ops {
namespace {

// The coefficients, then: norm^2 before, norm^2 after, what is left^2, passes.
Tensor project(const Tensor& w, const Tensor& basis, const std::optional<Tensor>& scale,
               double again) {
  const curvature::Basis q = basis_of(basis, scale);
  float* x = projected(w, q, again);
  Tensor out = torch::stable::new_empty(w, {q.rows + 4}, ScalarType::Double);
  auto* c = static_cast<double*>(data(out));
  const curvature::Projection p = curvature::project(c, q, x, again);
  c[q.rows] = p.before, c[q.rows + 1] = p.after, c[q.rows + 2] = p.left;
  c[q.rows + 3] = static_cast<double>(p.passes);
  return out;
}

Tensor lanczos_step(const Tensor& w, const Tensor& q, const std::optional<Tensor>& previous,
                    double beta) {
  const Lanczos l = lanczos_of(w, q, previous);
  const curvature::LanczosStep s = curvature::lanczos_step(l.w, l.q, l.previous, beta, l.n);
  Tensor out = torch::stable::new_empty(w, {2}, ScalarType::Double);
  auto* numbers = static_cast<double*>(data(out));
  numbers[0] = s.alpha, numbers[1] = s.norm2;
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("curvature_project_(Tensor(a!) w, Tensor basis, Tensor? scale, float again) -> Tensor");
  m.def("curvature_lanczos_step_(Tensor(a!) w, Tensor q, Tensor? previous, float beta) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("curvature_project_", LT_BOX(&project));
  m.impl("curvature_lanczos_step_", LT_BOX(&lanczos_step));
}

}  // namespace lowtide::torch_ops
