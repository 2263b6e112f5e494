// SPDX-License-Identifier: Apache-2.0
// One matrix a call.
#include "optim/factored_cuda.h"
#include "torch/cuda/device.h"
#include "torch/factored_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor scratch_of(const RowMatrix& g, const Tensor& like) {
  return empty(like, {optim::cuda::factored_scratch(g.rows, g.cols)}, ScalarType::Byte);
}

Tensor adafactor(const Tensor& u, const std::optional<Tensor>& grad, const Tensor& row,
                 const Tensor& col, double beta2, double eps, double least, double mean_least,
                 double threshold) {
  const OnDevice device(u);
  const Adafactor a = adafactor_of(u, grad, row, col);
  Tensor skipped = empty(u, {}, ScalarType::Long);
  const Tensor scratch = scratch_of(a.g, u);
  check(optim::cuda::adafactor(a.u, a.row, a.col, a.g, {beta2, eps, least, mean_least, threshold},
                               data(scratch), as<int64_t>(skipped), device.stream()),
        "adafactor_");
  return skipped;
}

Tensor block_adam(const Tensor& factor, const Tensor& grad, const Tensor& v, double beta2, double a,
                  double s, double eps) {
  const OnDevice device(grad);
  const RowMatrix g = row_matrix(grad, v.numel(), "g");
  same_numel(factor, g.rows, "factor");
  Tensor skipped = empty(grad, {}, ScalarType::Long);
  const Tensor scratch = scratch_of(g, grad);
  check(optim::cuda::block_adam(f32(factor, "factor"), f32(v, "v"), g, {beta2, a, s, eps},
                                data(scratch), as<int64_t>(skipped), device.stream()),
        "block_adam_");
  return skipped;
}

Tensor row_dots(const Tensor& x, const Tensor& y, int64_t rows) {
  const OnDevice device(x);
  STD_TORCH_CHECK(rows >= 0, "lowtide: rows must be >= 0, got ", rows);
  const RowMatrix a = row_matrix(x, rows, "x"), b = row_matrix(y, rows, "y");
  same_numel(y, x.numel(), "y");
  Tensor out = doubles(x, rows);
  check(optim::cuda::row_dots(as<double>(out), a, b, device.stream()), "row_dots");
  return out;
}

void shear_rows(const Tensor& u, const Tensor& c, const Tensor& weight) {
  const OnDevice device(u);
  const RowMatrix w = row_matrix(weight, c.numel(), "w");
  same_numel(u, weight.numel(), "u");
  check(optim::cuda::shear_rows(f32(u, "u"), const_f32(c, "c"), w, device.stream()), "shear_rows_");
}

void scale_rows(const Tensor& u, const Tensor& c) {
  const OnDevice device(u);
  const RowMatrix w = row_matrix(u, c.numel(), "u");
  check(optim::cuda::scale_rows(f32(u, "u"), const_f32(c, "c"), w.rows, w.cols, device.stream()),
        "scale_rows_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowtide, CUDA, m) {
  m.impl("adafactor_", LT_BOX(&adafactor));
  m.impl("block_adam_", LT_BOX(&block_adam));
  m.impl("row_dots", LT_BOX(&row_dots));
  m.impl("shear_rows_", LT_BOX(&shear_rows));
  m.impl("scale_rows_", LT_BOX(&scale_rows));
}

}  // namespace lowtide::torch_ops
