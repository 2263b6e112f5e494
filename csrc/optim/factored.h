// SPDX-License-Identifier: Apache-2.0
// Rules whose second moment has fewer numbers than the matrix: one a row and one a column
// (Adafactor: Shazeer and Stern, ICML 2018, algorithm 4) or one a block of rows (Adam-mini: Zhang
// et al., ICLR 2025, algorithm 2); and the products of rows by which AdamP (Heo et al., ICLR 2021,
// algorithm 2) decides and projects. Matrices are rows x cols, row-major, contiguous.
//
// Sums are taken in double: a row has 16 lane sums (element k goes to lane k % 16), folded by
// halves; so are sums over all rows. A column is a chain within each chunk of rows (a constant of
// the shape), chunks are added in order. Products of floats are exact in double, so the only
// roundings are those of the sums.
//
// Traffic an element with float32 gradients: Adafactor 4 bytes for the sums, 8 for the scaled
// gradient and 8 more where it is clipped; Adam-mini 4.
#pragma once
#include <cstdint>
#include <vector>

#include "base/dtype.h"

namespace lowtide::optim {

// A matrix of float32 or bfloat16 numbers to read.
struct RowMatrix {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t rows = 0, cols = 0;
};

struct FactoredRule {
  double beta2;  // of the second moments, in [0, 1]
  double eps;    // >= 0, added to each square
  double least;  // >= 0: the estimate of a second moment is at least this
  double
      mean_least;    // >= 0: ... and the mean of the rows, by which they are divided, at least that
  double threshold;  // > 0: the root mean square of the direction is at most this
};

// row (rows) and col (cols): second moments, float32; col may be null, then each row has its own
// second moment and nothing else (a vector is a matrix of one column).
//
//   row = beta2 row + (1 - beta2) mean over the row of (g^2 + eps), col likewise
//   u = g / sqrt(max(row col / max(mean(row), mean_least), least))
//   u = u / max(1, rms(u) / threshold)
//
// u: float32, rows x cols. False if a second moment or the direction would not be finite: then the
// moments are left alone and u is zero. A zero gradient gives zeros.
bool adafactor(float* u, float* row, float* col, const RowMatrix& g, const FactoredRule& rule);

struct BlockRule {
  double beta2;
  double a, s, eps;  // >= 0: the step size and what makes the denominator, sqrt(v) s + eps
};

// v (rows), one a row: v = beta2 v + (1 - beta2) mean(g^2); factor = a / (sqrt(v) s + eps). False
// if a second moment would not be finite: then v is left alone and factor is zero.
bool block_adam(float* factor, float* v, const RowMatrix& g, const BlockRule& rule);

// out[i] = <x_i, y_i>, in double.
void row_dots(double* out, const RowMatrix& x, const RowMatrix& y);

// u_i = u_i - c[i] w_i (multiply, then subtract); u: float32, of w's shape.
void shear_rows(float* u, const float* c, const RowMatrix& w);
// u_i = c[i] u_i
void scale_rows(float* u, const float* c, int64_t rows, int64_t cols);

}  // namespace lowtide::optim
