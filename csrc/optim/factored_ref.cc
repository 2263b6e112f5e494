// SPDX-License-Identifier: Apache-2.0
// The scalar definition.
#include "optim/factored_table.h"

namespace lowtide::optim {
namespace {

float element(const RowMatrix& x, int64_t i) {
  return x.dtype == Dtype::f32 ? static_cast<const float*>(x.data)[i]
                               : bf16_to_float(static_cast<const uint16_t*>(x.data)[i]);
}

void squares_ref(double* row, double* col, const RowMatrix& g, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    double lane[kRowLanes] = {};
    for (int64_t k = 0; k < g.cols; ++k) {
      const double x = static_cast<double>(element(g, i * g.cols + k));
      const double square = x * x;
      lane[k % kRowLanes] += square;
      if (col != nullptr) col[k] += square;
    }
    row[i] = fold_row(lane);
  }
}

void dots_ref(double* out, const RowMatrix& x, const RowMatrix& y, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    double lane[kRowLanes] = {};
    for (int64_t k = 0; k < x.cols; ++k)
      lane[k % kRowLanes] += static_cast<double>(element(x, i * x.cols + k)) *
                             static_cast<double>(element(y, i * x.cols + k));
    out[i] = fold_row(lane);
  }
}

void scale_ref(float* u, double* sums, const RowMatrix& g, const float* r, const float* c,
               float cap, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    double lane[kRowLanes] = {};
    for (int64_t k = 0; k < g.cols; ++k) {
      const float w = capped(c == nullptr ? r[i] : r[i] * c[k], cap);
      const float x = element(g, i * g.cols + k) * w;
      u[i * g.cols + k] = x;
      lane[k % kRowLanes] += static_cast<double>(x) * static_cast<double>(x);
    }
    sums[i] = fold_row(lane);
  }
}

void shear_ref(float* u, const float* c, const RowMatrix& w, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t k = i * w.cols; k < (i + 1) * w.cols; ++k) u[k] = u[k] - c[i] * element(w, k);
}

void multiply_ref(float* u, const float* c, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t k = i * cols; k < (i + 1) * cols; ++k) u[k] = c[i] * u[k];
}

}  // namespace

const FactoredTable factored_scalar = {squares_ref, dots_ref, scale_ref, shear_ref, multiply_ref};

}  // namespace lowtide::optim
