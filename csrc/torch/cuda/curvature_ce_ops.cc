// SPDX-License-Identifier: Apache-2.0
#include "curvature/ce_rows_cuda.h"
#include "torch/cuda/device.h"
#include "torch/curvature_ce_args.h"

namespace lowtide::torch_ops {
namespace {

using Kernel = int (*)(float*, const CeRows&, void*);

Tensor matrix(Kernel f, const Tensor& z, const CeRows& a, const OnDevice& device) {
  Tensor y = empty(z, {a.rows, a.cols}, ScalarType::Float);
  check(f(as<float>(y), a, device.stream()), "curvature_ce");
  return y;
}

Tensor ce_product(const Tensor& z, const Tensor& u, const Tensor& r) {
  const OnDevice device(z);
  CeRows a = rows_of(z, r);
  a.u = like(u, z, "u");
  return matrix(curvature::cuda::ce_product, z, a, device);
}

void ce_product_in_place(const Tensor& u, const Tensor& z, const Tensor& r) {
  const OnDevice device(z);
  CeRows a = rows_of(z, r);
  a.u = like(u, z, "u");
  check(curvature::cuda::ce_product(f32(u, "u"), a, device.stream()), "curvature_ce_product_");
}

Tensor ce_cumulant(const Tensor& z, const Tensor& u, const Tensor& q, const Tensor& r) {
  const OnDevice device(z);
  CeRows a = rows_of(z, r);
  a.u = like(u, z, "u"), a.q = like(q, z, "q");
  return matrix(curvature::cuda::ce_cumulant, z, a, device);
}

Tensor ce_diagonal(const Tensor& z, const Tensor& r) {
  const OnDevice device(z);
  return matrix(curvature::cuda::ce_diagonal, z, rows_of(z, r), device);
}

Tensor ce_weighted(const Tensor& z, const Tensor& r) {
  const OnDevice device(z);
  return matrix(curvature::cuda::ce_weighted, z, rows_of(z, r), device);
}

void ce_weighted_in_place(const Tensor& z, const Tensor& r) {
  const OnDevice device(z);
  const CeRows a = rows_of(z, r);
  check(curvature::cuda::ce_weighted(f32(z, "z"), a, device.stream()), "curvature_ce_weighted_");
}

Tensor ce_trace(const Tensor& z, const Tensor& r) {
  const OnDevice device(z);
  const CeRows a = rows_of(z, r);
  Tensor y = floats(z, a.rows);
  check(curvature::cuda::ce_trace(as<float>(y), a, device.stream()), "curvature_ce_trace");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("curvature_ce_product", LT_BOX(&ce_product));
  m.impl("curvature_ce_product_", LT_BOX(&ce_product_in_place));
  m.impl("curvature_ce_cumulant", LT_BOX(&ce_cumulant));
  m.impl("curvature_ce_diagonal", LT_BOX(&ce_diagonal));
  m.impl("curvature_ce_weighted", LT_BOX(&ce_weighted));
  m.impl("curvature_ce_weighted_", LT_BOX(&ce_weighted_in_place));
  m.impl("curvature_ce_trace", LT_BOX(&ce_trace));
}

}  // namespace lowtide::torch_ops
