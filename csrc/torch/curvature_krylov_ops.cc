// SPDX-License-Identifier: Apache-2.0
#include "curvature/krylov.h"
#include "curvature/krylov_order.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

curvature::Basis basis_of(const Tensor& data, const std::optional<Tensor>& scale) {
  using curvature::BasisType;
  const ScalarType dtype = data.scalar_type();
  STD_TORCH_CHECK(data.is_cpu() && data.dim() == 2 && data.is_contiguous() &&
                      (dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                       dtype == ScalarType::Byte),
                  "lowtide: basis must be a contiguous 2-D float32, bfloat16 or uint8 CPU tensor");
  STD_TORCH_CHECK(scale.has_value() == (dtype == ScalarType::Byte),
                  "lowtide: a uint8 basis has scales, others have none");
  curvature::Basis q;
  q.data = data.const_data_ptr();
  q.type = dtype == ScalarType::Float      ? BasisType::f32
           : dtype == ScalarType::BFloat16 ? BasisType::bf16
                                           : BasisType::int8;
  q.rows = data.size(0), q.n = data.size(1);
  if (scale.has_value()) {
    q.scale = const_f32(*scale, "scale");
    STD_TORCH_CHECK(scale->dim() == 2 && scale->size(0) == q.rows &&
                        scale->size(1) == curvature::krylov_groups(q.n),
                    "lowtide: scale must have one number for each 256 elements of each row");
  }
  return q;
}

// The coefficients, then: norm^2 before, norm^2 after, what is left^2, passes.
Tensor project(const Tensor& w, const Tensor& basis, const std::optional<Tensor>& scale,
               double again) {
  const curvature::Basis q = basis_of(basis, scale);
  float* x = f32(w, "w");
  STD_TORCH_CHECK(w.numel() == q.n, "lowtide: w must have as many elements as a row of the basis");
  STD_TORCH_CHECK(again >= 0, "lowtide: again must not be negative");
  Tensor out = torch::stable::new_empty(w, {q.rows + 4}, ScalarType::Double);
  auto* c = static_cast<double*>(out.mutable_data_ptr());
  const curvature::Projection p = curvature::project(c, q, x, again);
  c[q.rows] = p.before, c[q.rows + 1] = p.after, c[q.rows + 2] = p.left;
  c[q.rows + 3] = static_cast<double>(p.passes);
  return out;
}

Tensor lanczos_step(const Tensor& w, const Tensor& q, const std::optional<Tensor>& previous,
                    double beta) {
  float* x = f32(w, "w");
  STD_TORCH_CHECK(q.numel() == w.numel() && (!previous || previous->numel() == w.numel()),
                  "lowtide: w, q and previous must have equal sizes");
  const curvature::LanczosStep s = curvature::lanczos_step(
      x, const_f32(q, "q"), previous ? const_f32(*previous, "previous") : nullptr, beta, w.numel());
  Tensor out = torch::stable::new_empty(w, {2}, ScalarType::Double);
  auto* numbers = static_cast<double*>(out.mutable_data_ptr());
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
