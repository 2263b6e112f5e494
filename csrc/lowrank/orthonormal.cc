// SPDX-License-Identifier: Apache-2.0
#include "lowrank/orthonormal.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "lowrank/small_dense.h"
#include "quant/matmul.h"

namespace lowtide::lowrank {
namespace {

// Squared sine of the angle below which a row counts as dependent on those above it. Floats carry
// no direction below ~1e-7; a decade above, what is left of a row is mostly rounding.
constexpr double kDependent = 1e-12;

using Vec = std::vector<double>;

}  // namespace

bool cholesky_inverse(double* g, int64_t rows, double* inverse) {
  PinnedFpEnv pin;
  const RowOps& ops = row_ops();
  Vec size(static_cast<size_t>(rows));
  for (int64_t k = 0; k < rows; ++k) size[static_cast<size_t>(k)] = g[k * rows + k];
  // g = U' U: rows of U replace the upper triangle.
  for (int64_t k = 0; k < rows; ++k) {
    double* row = g + k * rows;
    if (!(row[k] > kDependent * size[static_cast<size_t>(k)])) return false;  // also zero and NaN
    const double root = std::sqrt(row[k]);
    for (int64_t j = k; j < rows; ++j) row[j] = row[j] / root;
    for (int64_t i = k + 1; i < rows; ++i) ops.axpy(g + i * rows + i, -row[i], row + i, rows - i);
  }
  std::fill(inverse, inverse + rows * rows, 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    double* row = inverse + i * rows;
    row[i] = 1.0;
    for (int64_t j = 0; j < i; ++j) ops.axpy(row, -g[j * rows + i], inverse + j * rows, j + 1);
    const double diagonal = g[i * rows + i];
    for (int64_t j = 0; j <= i; ++j) row[j] = row[j] / diagonal;
  }
  return true;
}

void multiply_small(Floats& c, const double* a, int64_t rows, int64_t inner, const float* b,
                    int64_t cols) {
  Floats left(static_cast<size_t>(rows * inner));
  for (size_t i = 0; i < left.size(); ++i) left[i] = static_cast<float>(a[i]);
  c.resize(static_cast<size_t>(rows * cols));
  quant::matmul(c.data(), quant::dense(left.data(), rows, inner), false,
                quant::dense(b, inner, cols), false);
}

void scale_rows(Floats& y, int64_t rows, int64_t depth) {
  parallel_for(rows, 1 + (int64_t{1} << 16) / (depth + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = y.data() + i * depth;
      const float most = bits_float(static_cast<uint32_t>(largest_bits(row, depth)));
      if (most == 0) continue;
      int exponent = 0;
      std::frexp(most, &exponent);
      // In two steps: 2^-exponent itself may be out of range.
      const float a = std::ldexp(1.0f, -exponent / 2);
      const float b = std::ldexp(1.0f, -exponent - -exponent / 2);
      for (int64_t k = 0; k < depth; ++k) row[k] = row[k] * a * b;
    }
  });
}

bool cholesky_pass(Floats& y, int64_t rows, int64_t depth) {
  Vec g(static_cast<size_t>(rows * rows)), inverse(g.size());
  gram(g.data(), y.data(), rows, depth);
  if (!cholesky_inverse(g.data(), rows, inverse.data())) return false;
  Floats q;
  multiply_small(q, inverse.data(), rows, rows, y.data(), depth);
  y.swap(q);
  return true;
}

void orthonormalize(Floats& y, int64_t rows, int64_t depth) {
  scale_rows(y, rows, depth);
  if (!cholesky_pass(y, rows, depth) || !cholesky_pass(y, rows, depth))
    orthonormalize_householder(y.data(), rows, depth);
}

// y = [L 0] H(rows - 1) ... H(0): reflectors replace the rows, then Q is applied to unit vectors.
void orthonormalize_householder(float* y, int64_t rows, int64_t depth) {
  Vec a(y, y + rows * depth), beta(static_cast<size_t>(rows)), sign(static_cast<size_t>(rows), 1.0);
  const RowOps& ops = row_ops();
  const int64_t grain = 1 + (int64_t{1} << 16) / (depth + 1);
  for (int64_t i = 0; i < rows; ++i) {
    double* v = a.data() + i * depth + i;
    const int64_t m = depth - i;
    double diagonal = 0;
    {
      PinnedFpEnv pin;
      beta[static_cast<size_t>(i)] = reflector(v, m, &diagonal, ops);
    }
    if (diagonal < 0) sign[static_cast<size_t>(i)] = -1.0;
    const double b = beta[static_cast<size_t>(i)];
    if (b == 0.0) continue;
    parallel_for(rows - i - 1, grain, [&](int64_t begin, int64_t end) {
      for (int64_t j = i + 1 + begin; j < i + 1 + end; ++j) {
        double* row = a.data() + j * depth + i;
        ops.axpy(row, -b * ops.dot(row, v, m), v, m);
      }
    });
  }
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    Vec q(static_cast<size_t>(depth));
    for (int64_t i = begin; i < end; ++i) {
      std::fill(q.begin(), q.end(), 0.0);
      q[static_cast<size_t>(i)] = sign[static_cast<size_t>(i)];
      for (int64_t j = i; j >= 0; --j) {  // H(j) for j > i leaves e(i) alone
        const double b = beta[static_cast<size_t>(j)];
        if (b == 0.0) continue;
        const double* v = a.data() + j * depth + j;
        ops.axpy(q.data() + j, -b * ops.dot(q.data() + j, v, depth - j), v, depth - j);
      }
      for (int64_t k = 0; k < depth; ++k)
        y[i * depth + k] = static_cast<float>(q[static_cast<size_t>(k)]);
    }
  });
}

}  // namespace lowtide::lowrank
