// SPDX-License-Identifier: Apache-2.0
// The scalar definition.
#include "lowrank/small_dense_table.h"

namespace lowtide::lowrank {
namespace {

void gram_block_ref(double* g, const float* y, int64_t ld, int64_t rows, int64_t depth,
                    int64_t padded, double*) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j <= i; ++j)
      for (int64_t k = 0; k < depth; ++k)
        g[i * padded + j] +=
            static_cast<double>(y[i * ld + k]) * static_cast<double>(y[j * ld + k]);
}

void axpy_ref(double* y, double a, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = y[i] + a * x[i];
}

void axpy2_ref(double* y, double a, const double* x, double b, const double* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = (y[i] + a * x[i]) + b * z[i];
}

void rotate_ref(double* z, int64_t ld, int64_t n, const double* c, const double* s, int64_t first,
                int64_t last) {
  for (int64_t i = last; i >= first; --i)
    for (int64_t k = 0; k < n; ++k) {
      const double upper = z[i * ld + k], lower = z[(i + 1) * ld + k];
      z[(i + 1) * ld + k] = s[i] * upper + c[i] * lower;
      z[i * ld + k] = c[i] * upper - s[i] * lower;
    }
}

double dot_ref(const double* x, const double* y, int64_t n) {
  double lane[kDotLanes] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % kDotLanes] += x[i] * y[i];
  return fold_lanes(lane);
}

}  // namespace

const SmallDenseTable small_dense_scalar = {gram_block_ref,
                                            {axpy_ref, axpy2_ref, rotate_ref, dot_ref}};

}  // namespace lowtide::lowrank
