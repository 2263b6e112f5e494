// SPDX-License-Identifier: Apache-2.0
// One matrix a call.
#include "torch/factored_args.h"

namespace lowtide::torch_ops {
namespace {

Tensor count(const Tensor& like, bool done) {
  Tensor skipped = torch::stable::new_empty(like, {}, ScalarType::Long);
  *static_cast<int64_t*>(data(skipped)) = done ? 0 : 1;
  return skipped;
}

Tensor adafactor(const Tensor& u, const std::optional<Tensor>& grad, const Tensor& row,
                 const Tensor& col, double beta2, double eps, double least, double mean_least,
                 double threshold) {
  const Adafactor a = adafactor_of(u, grad, row, col);
  return count(
      u, optim::adafactor(a.u, a.row, a.col, a.g, {beta2, eps, least, mean_least, threshold}));
}

Tensor block_adam(const Tensor& factor, const Tensor& grad, const Tensor& v, double beta2, double a,
                  double s, double eps) {
  const RowMatrix g = row_matrix(grad, v.numel(), "g");
  same_numel(factor, g.rows, "factor");
  const bool done = optim::block_adam(f32(factor, "factor"), f32(v, "v"), g, {beta2, a, s, eps});
  return count(grad, done);
}

Tensor row_dots(const Tensor& x, const Tensor& y, int64_t rows) {
  STD_TORCH_CHECK(rows >= 0, "lowtide: rows must be >= 0, got ", rows);
  const RowMatrix a = row_matrix(x, rows, "x"), b = row_matrix(y, rows, "y");
  same_numel(y, x.numel(), "y");
  Tensor out = torch::stable::new_empty(x, {rows}, ScalarType::Double);
  optim::row_dots(static_cast<double*>(data(out)), a, b);
  return out;
}

void shear_rows(const Tensor& u, const Tensor& c, const Tensor& weight) {
  const RowMatrix w = row_matrix(weight, c.numel(), "w");
  same_numel(u, weight.numel(), "u");
  optim::shear_rows(f32(u, "u"), const_f32(c, "c"), w);
}

void scale_rows(const Tensor& u, const Tensor& c) {
  const RowMatrix w = row_matrix(u, c.numel(), "u");
  optim::scale_rows(f32(u, "u"), const_f32(c, "c"), w.rows, w.cols);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  // g: none where u holds the gradient. An empty col: each row has its own second moment.
  m.def(
      "adafactor_(Tensor(a!) u, Tensor? g, Tensor(b!) row, Tensor(c!) col, float beta2, float eps, "
      "float least, float mean_least, float threshold) -> Tensor");
  m.def(
      "block_adam_(Tensor(a!) factor, Tensor g, Tensor(b!) v, float beta2, float a, float s, float "
      "eps) -> Tensor");
  m.def("row_dots(Tensor x, Tensor y, int rows) -> Tensor");
  m.def("shear_rows_(Tensor(a!) u, Tensor c, Tensor w) -> ()");
  m.def("scale_rows_(Tensor(a!) u, Tensor c) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("adafactor_", LT_BOX(&adafactor));
  m.impl("block_adam_", LT_BOX(&block_adam));
  m.impl("row_dots", LT_BOX(&row_dots));
  m.impl("shear_rows_", LT_BOX(&shear_rows));
  m.impl("scale_rows_", LT_BOX(&scale_rows));
}

}  // namespace lowtide::torch_ops
