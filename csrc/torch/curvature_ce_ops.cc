// SPDX-License-Identifier: Apache-2.0
#include "torch/curvature_ce_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor matrix(void (*f)(float*, const CeRows&), const Tensor& z, const CeRows& a) {
  Tensor y = torch::stable::new_empty(z, {a.rows, a.cols}, ScalarType::Float);
  f(static_cast<float*>(data(y)), a);
  return y;
}

Tensor ce_product(const Tensor& z, const Tensor& u, const Tensor& r) {
  CeRows a = rows_of(z, r);
  a.u = like(u, z, "u");
  return matrix(curvature::ce_product, z, a);
}

void ce_product_in_place(const Tensor& u, const Tensor& z, const Tensor& r) {
  CeRows a = rows_of(z, r);
  a.u = like(u, z, "u");
  curvature::ce_product(f32(u, "u"), a);
}

Tensor ce_cumulant(const Tensor& z, const Tensor& u, const Tensor& q, const Tensor& r) {
  CeRows a = rows_of(z, r);
  a.u = like(u, z, "u"), a.q = like(q, z, "q");
  return matrix(curvature::ce_cumulant, z, a);
}

Tensor ce_diagonal(const Tensor& z, const Tensor& r) {
  return matrix(curvature::ce_diagonal, z, rows_of(z, r));
}

Tensor ce_weighted(const Tensor& z, const Tensor& r) {
  return matrix(curvature::ce_weighted, z, rows_of(z, r));
}

void ce_weighted_in_place(const Tensor& z, const Tensor& r) {
  const CeRows a = rows_of(z, r);
  curvature::ce_weighted(f32(z, "z"), a);
}

Tensor ce_trace(const Tensor& z, const Tensor& r) {
  const CeRows a = rows_of(z, r);
  Tensor y = torch::stable::new_empty(z, {a.rows}, ScalarType::Float);
  curvature::ce_trace(static_cast<float*>(data(y)), a);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def("curvature_ce_product(Tensor z, Tensor u, Tensor r) -> Tensor");
  m.def("curvature_ce_product_(Tensor(a!) u, Tensor z, Tensor r) -> ()");
  m.def("curvature_ce_cumulant(Tensor z, Tensor u, Tensor q, Tensor r) -> Tensor");
  m.def("curvature_ce_diagonal(Tensor z, Tensor r) -> Tensor");
  m.def("curvature_ce_weighted(Tensor z, Tensor r) -> Tensor");
  m.def("curvature_ce_weighted_(Tensor(a!) z, Tensor r) -> ()");
  m.def("curvature_ce_trace(Tensor z, Tensor r) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("curvature_ce_product", LT_BOX(&ce_product));
  m.impl("curvature_ce_product_", LT_BOX(&ce_product_in_place));
  m.impl("curvature_ce_cumulant", LT_BOX(&ce_cumulant));
  m.impl("curvature_ce_diagonal", LT_BOX(&ce_diagonal));
  m.impl("curvature_ce_weighted", LT_BOX(&ce_weighted));
  m.impl("curvature_ce_weighted_", LT_BOX(&ce_weighted_in_place));
  m.impl("curvature_ce_trace", LT_BOX(&ce_trace));
}

}  // namespace lowtide::torch_ops
